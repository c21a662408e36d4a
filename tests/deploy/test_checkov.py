"""checkov on the Dockerfile and the Kubernetes builds, with the exceptions that the files give reasons for.

`make check-deploy` brings checkov, in an environment of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy import kuberay
from tests.deploy.dockerfile import DOCKERFILE, ROOT
from tests.deploy.kustomize import K8S, RAY, TWO, build, of_kind

CHECKOV = shutil.which("checkov", path=f"{ROOT / 'build/checkov/bin'}:{os.environ['PATH']}")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHECKOV is None, reason="no checkov; `make check-deploy` brings it")]


def findings(*arguments: str | Path) -> list[str]:
    """The checks that failed."""
    run = subprocess.run([str(CHECKOV), "--skip-download", "--compact", "--quiet", *arguments],
                         capture_output=True, text=True, timeout=100)
    assert run.returncode in (0, 1) and not run.stderr, run.stderr
    assert "Passed checks: " in run.stdout, "it looked at nothing"
    return re.findall(r"^Check: (\w+)", run.stdout, re.MULTILINE)


def test_the_dockerfile() -> None:
    assert findings("--framework", "dockerfile", "--file", DOCKERFILE) == []


def test_it_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.read_text().replace("USER 10001:0", "USER root").replace("HEALTHCHECK", "LABEL"))
    assert "CKV_DOCKER_8" in findings("--framework", "dockerfile", "--file", bad)


@pytest.mark.parametrize("name", ["cpu", "gpu", "everything", "everything else", TWO, RAY])
def test_the_manifests(name: str, tmp_path: Path) -> None:
    rendered = tmp_path / "all.yaml"
    of_kuberay = [made for cluster in of_kind(name, "RayCluster") for made in kuberay.pods(cluster)]
    rendered.write_text(yaml.safe_dump_all([*build(name), *of_kuberay]))
    assert findings("--config-file", K8S / "checkov.yaml", "--file", rendered) == []
