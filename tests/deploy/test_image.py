"""The images themselves: who they run as, what they may write, what they answer and how they end; and what is in them.

`make check-deploy` builds them first. In place of Docker and of the GPU's base image: tests/deploy/image.py.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import quire
from quire.engine.config import EngineArgs
from quire.engine.weights.locate import resolve_model
from tests.deploy import image, kuberay
from tests.deploy.kustomize import RAY, settings_of, the
from tests.deploy.test_dockerfile import locked
from tests.deploy.test_systemd_sandbox import launcher_of as process_1
from tests.e2e.server import KEY, Server, free_port, listens, until

MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
MIB = 2**20
# What we add to the base, which is some 6 GB by itself: compiler, libraries, code; and what the variants add to that.
BUDGET, MODEL_BUDGET, RAY_BUDGET = 2100 * MIB, 100 * MIB, 260 * MIB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
variants = pytest.mark.parametrize("target", ["model", "ray"])
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module", params=image.TARGETS)
def built(request: pytest.FixtureRequest) -> str:
    return found(request.param)


def found(target: str) -> str:
    if image.why_not():
        pytest.skip(image.why_not())
    if not image.exists(image.tag(target)):
        pytest.skip("no image of this tree; `make check-deploy` builds it")
    return image.tag(target)


@pytest.fixture(scope="module")
def roots() -> Iterator[Callable[[str], Path]]:
    """Where an image's files are."""
    open_ones: dict[str, Any] = {}

    def mount(target: str) -> Path:
        if target not in open_ones:
            context = image.mounted(found(target))
            open_ones[target] = context, context.__enter__()
        root: Path = open_ones[target][1]
        return root

    yield mount
    for context, _ in open_ones.values():
        context.__exit__(None, None, None)


@pytest.fixture
def start(roots: Callable[[str], Path], tmp_path: Path) -> Start:
    """`docker run` with a read-only root and no rights, and a volume for the cache."""

    def run(target: str, *arguments: str, uid: int = 10001, shell: str = "", pod: Sequence[str] = (),
            model: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        """`pod`: what stands in a pod as the command, which goes before the image's entry point."""
        cache = tmp_path / "cache"
        cache.mkdir(exist_ok=True)
        inside = (roots(target) / "cache").stat()  # which is what a new volume gets
        os.chown(cache, inside.st_uid, inside.st_gid)
        cache.chmod(stat.S_IMODE(inside.st_mode))
        if model:
            (roots(target) / "models/model").mkdir(parents=True, exist_ok=True)  # as a container's runtime does
        command = image.command(found(target), roots(target), cache, *arguments, uid=uid, variables=variables,
                                model=model)
        if shell or pod:
            command = [*command[:command.index("/usr/bin/tini")], *(pod or ("/bin/sh", "-c", shell))]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    return run


def output(process: subprocess.Popen[str]) -> tuple[int, str]:
    told, errors = process.communicate(timeout=120)
    return process.returncode, told + errors


def health(server: Server, target: str, uid: int = 10001) -> int:
    """What Docker would run beside the server, in its namespaces."""
    command = image.config(found(target))["Healthcheck"]["Test"][1:]
    variables = [f"{name}={value}" for name, value in image.environment(found(target)).items()]
    run = subprocess.run(["nsenter", f"--target={process_1(server)}", "--mount", "--pid", "--root", "--wd", "setpriv",
                          f"--reuid={uid}", "--regid=0", "--clear-groups", "env", "-i", *variables, *command],
                         capture_output=True, text=True, timeout=20)
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode


# Running


@pytest.mark.parametrize("uid", [10001, 1_000_650_000], ids=["its own user", "a random user of group 0"])
def test_a_chat_is_answered_on_a_read_only_root_and_sigterm_lets_a_stream_end(start: Start, uid: int) -> None:
    server = Server(start("model", uid=uid, VLLM_API_KEY=KEY, QUIRE_PORT=str(free_port()), QUIRE_CPU_THREADS="1",
                          QUIRE_MAX_MODEL_LEN="1024", HF_HUB_OFFLINE="1"))
    try:
        until(lambda: (process_1_is_tini(server)), 20)
        assert health(server, "model", uid) == 1, "it still loads"
        server.wait_ready()
        assert health(server, "model", uid) == 0
        reply = server.client(timeout=60).chat.completions.create(
            model=MODEL, temperature=0, max_tokens=16, messages=QUESTION)  # type: ignore[arg-type]
        assert "Paris" in (reply.choices[0].message.content or "")
        chunks: list[Any] = []
        stream = server.client(timeout=60).completions.create(
            model=MODEL, prompt="Once upon a time", max_tokens=60, stream=True, extra_body={"ignore_eos": True})
        reader = threading.Thread(target=lambda: chunks.extend(stream))
        reader.start()
        until(lambda: server.metric("vllm:num_requests_running"))
        os.kill(process_1(server), signal.SIGTERM)
        reader.join(60)
        assert chunks[-1].choices[0].finish_reason == "length", "the stream went to its end"
        assert server.wait_exit() == 0
        assert not any("Traceback" in line or "Permission denied" in line for line in server.lines)
    finally:
        end(server)


def process_1_is_tini(server: Server) -> bool:
    try:
        return Path(f"/proc/{process_1(server)}/comm").read_text() == "tini\n"
    except (OSError, ValueError):
        return False


def end(server: Server) -> None:
    if server.process.poll() is None:
        os.kill(process_1(server), signal.SIGKILL)  # all of its namespace goes with it; bubblewrap's end would not do
        server.wait_exit()
    assert server.process.stdout is not None
    server.process.stdout.close()


@dataclass
class Node:
    """A pod of the overlay `ray` on this machine's loopback: KubeRay's command, one CPU in place of its GPUs."""

    group: Any
    gcs: int
    port: int = field(default_factory=free_port)

    def start(self, start: Start, **variables: str) -> subprocess.Popen[str]:
        group = copy.deepcopy(self.group)
        (container,) = group["template"]["spec"]["containers"]
        container["resources"] = {"requests": {"cpu": "1"}, "limits": {}}
        group["rayStartParams"] |= {"node-ip-address": "127.0.0.1", "node-manager-port": str(self.port)} | (
            {"address": f"127.0.0.1:{self.gcs}"} if "groupName" in group else {"port": str(self.gcs)})
        return start("ray", pod=container["command"], model=Path(resolve_model(EngineArgs()).path).parent,
                     RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=KEY, RAY_ADDRESS=f"127.0.0.1:{self.gcs}",
                     KUBERAY_GEN_RAY_START_CMD=kuberay.start_command(group), **variables)


def test_a_ray_head_and_a_worker_answer_a_chat_on_read_only_roots(start: Start) -> None:
    """With the manifests' own commands and settings; a stop of the head is heard."""
    head, worker = (Node(group, gcs) for gcs in [free_port()] for group in kuberay.groups(the(RAY, "RayCluster")))
    settings = settings_of(RAY) | {
        "QUIRE_HOST": "127.0.0.1", "QUIRE_PORT": str(free_port()), "QUIRE_ADMIN_HOST": "127.0.0.1",
        "QUIRE_ADMIN_PORT": str(free_port()), "QUIRE_DEVICE": "cpu", "QUIRE_CPU_THREADS": "1", "QUIRE_DRAIN_DELAY": "0",
        "QUIRE_SERVED_MODEL_NAME": MODEL, "QUIRE_TENSOR_PARALLEL_SIZE": "1", "QUIRE_MAX_MODEL_LEN": "1024",
        "VLLM_API_KEY": KEY}
    del settings["VLLM_API_KEY_FILE"]
    server, second = Server(head.start(start, **settings)), None
    try:
        server.url = f"http://127.0.0.1:{settings['QUIRE_PORT']}"
        until(lambda: listens(int(settings["QUIRE_PORT"])), 60)
        until(lambda: "waiting for 2 CPUs of the Ray cluster" in server.get("/readyz").text, 60)
        second = Server(worker.start(start, **settings))
        server.wait_ready()
        assert listens(worker.port), "the worker's probes"
        assert output(start("ray", shell="ray health-check", RAY_ADDRESS=f"127.0.0.1:{head.gcs}"))[0] != 0, "no token"
        reply = server.client(timeout=60).chat.completions.create(
            model=MODEL, temperature=0, max_tokens=16, messages=QUESTION)  # type: ignore[arg-type]
        assert "Paris" in (reply.choices[0].message.content or "")
        os.kill(process_1(server), signal.SIGTERM)
        assert server.wait_exit() == 0
        assert not any("Traceback" in line or "Permission denied" in line for line in server.lines + second.lines)
    finally:
        for each in (server, second):
            if each is not None:
                end(each)


def test_the_user_has_no_rights_and_three_places_to_write_to(start: Start) -> None:
    code, told = output(start("runtime", shell=(
        "id -u; id -G; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; "
        "for place in /cache /run/quire /tmp / /etc /opt/quire /usr/share/sbom; do "
        "touch $place/x 2>/dev/null && echo $place; done")))
    assert code == 1, told  # the last touch
    assert told.split() == ["10001", "0", "CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1",
                            "/cache", "/run/quire", "/tmp"]


def test_a_stop_during_a_download_is_heard(start: Start) -> None:
    """From a hub that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(30)
        server = Server(start("runtime", "org/model", VLLM_API_KEY=KEY, QUIRE_PORT=str(free_port()),
                              HF_ENDPOINT=f"http://127.0.0.1:{hub.getsockname()[1]}"))
        try:
            connection, _ = hub.accept()
            asked_at = time.monotonic()
            os.kill(process_1(server), signal.SIGTERM)
            assert server.wait_exit(20) == 0
            assert time.monotonic() - asked_at < 5
            connection.close()
        finally:
            end(server)


@pytest.mark.parametrize(("arguments", "variables", "code", "says"), [
    (["version"], {}, 0, f"quire {quire.__version__}"),
    (["--help"], {}, 0, "doctor"),
    (["pull"], {}, 0, ".gguf"),
    (["doctor", "--device", "cpu"], {"VLLM_API_KEY": KEY}, 0, "0 failed"),
    (["check", "--max-model-len", "2k"], {"VLLM_API_KEY": KEY}, 0, "2000"),
    (["bench", "--help"], {}, 0, "throughput"),
    (["--model", "/models/none"], {"VLLM_API_KEY": KEY}, 2, "--model: /models/none does not exist"),
    (["/models/none"], {"VLLM_API_KEY": KEY}, 2, "--model: /models/none does not exist"),
    ([], {}, 2, "there is no API key"),
    (["serve", "--run-dir", "/opt/quire"], {"VLLM_API_KEY": KEY}, 2, "--run-dir: /opt/quire cannot be written to"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_docker_run_is_given(start: Start, arguments: list[str], variables: dict[str, str], code: int,
                                  says: str) -> None:
    ended, told = output(start("model", *arguments, **variables))
    assert ended == code and says in told and "Traceback" not in told, told


def test_triton_finds_a_compiler_and_all_headers(start: Start) -> None:
    """Its own program for the driver, compiled as it would be on a GPU; libcuda, which comes with the GPU, is empty."""
    code, told = output(start("runtime", uid=1_000_650_000, shell="""
        cc -shared -x c /dev/null -o /tmp/libcuda.so && python3 -c "
from pathlib import Path
import triton
from triton.runtime.build import _build
nvidia = Path(triton.__file__).parent / 'backends' / 'nvidia'
print(_build('cuda_utils', str(nvidia / 'driver.c'), '/tmp', ['/tmp'], [str(nvidia / 'include')], ['cuda']))" """))
    assert code == 0 and told.strip().endswith(".so"), told


def test_the_locked_versions_are_the_ones_imported(start: Start) -> None:
    code, told = output(start("runtime", shell="""python3 -c "
import json, numpy, torch, transformers, gunicorn
from importlib.metadata import distributions
print(json.dumps([numpy.__file__, {d.name.lower().replace('_', '-'): d.version for d in list(distributions())[::-1]}]))
" """))
    assert code == 0, told
    numpy, versions = json.loads(told)
    assert numpy.startswith("/opt/quire/")
    ours = {name: versions.get(name.lower().replace("_", "-")) for name in locked("image.txt")}
    assert ours == locked("image.txt")
    assert versions["torch"] == locked("image-base.txt")["torch"]


# What is in it


def files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            yield str(path.relative_to(root)), path.lstat()


def test_no_layer_holds_what_the_builder_was_given_or_left_over(built: str) -> None:
    for layer in image.layers(built):
        for name, found in files(layer):
            if stat.S_ISCHR(found.st_mode):  # taken away from the base
                continue
            assert not re.search(r"pip\.conf|^var/lib/apt/lists/.+|\.cache/|^build/|^wheels|(^|/)\.env", name), name
            assert not re.search(r"site-packages/(tests|cyclonedx|setuptools|pip)/", name), name
            if stat.S_ISREG(found.st_mode) and found.st_size < MIB:
                assert image.PIP_SECRET.encode() not in (layer / name).read_bytes(), name


@variants
def test_no_program_gives_rights_away(roots: Callable[[str], Path], target: str) -> None:
    found = [name for name, file in files(roots(target))
             if stat.S_ISREG(file.st_mode) and file.st_mode & (stat.S_ISUID | stat.S_ISGID)]
    assert found == []


@variants
def test_nobody_but_root_may_change_its_programs(roots: Callable[[str], Path], target: str) -> None:
    changeable = [name for name, file in files(roots(target) / "opt/quire") if not stat.S_ISLNK(file.st_mode)
                  and (file.st_uid != 0 or file.st_mode & (stat.S_IWGRP | stat.S_IWOTH))]
    assert changeable == []


def test_the_sbom_lists_what_is_locked_and_what_the_base_brings(roots: Callable[[str], Path]) -> None:
    sbom = json.loads((roots("runtime") / "usr/share/sbom/quire.cdx.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    component = sbom["metadata"]["component"]
    assert (component["name"], component["version"]) == ("quire", quire.__version__)
    listed = {each["name"].lower().replace("_", "-"): each["version"] for each in sbom["components"]}
    expected = {name.replace("_", "-"): version for name, version in locked("image.txt").items()}
    assert {name: listed.get(name) for name in expected} == expected
    assert listed["torch"] and "cyclonedx-bom" not in listed
    for target, lock in (("model", "model.txt"), ("ray", "image-ray.txt")):
        added = json.loads((roots(target) / f"usr/share/sbom/{target}.cdx.json").read_text())
        assert {each["name"]: each["version"] for each in added["components"]} == locked(lock)
        assert not (roots("runtime") / f"usr/share/sbom/{target}.cdx.json").exists()


def test_it_is_labelled(built: str) -> None:
    labels = {name.removeprefix("org.opencontainers.image."): value
              for name, value in image.config(built)["Labels"].items()}
    assert labels["title"] == "Quire" and labels["version"] == quire.__version__
    assert labels["licenses"] == "Apache-2.0" and labels["revision"] == "0123abc" and labels["base.name"]


def test_what_is_added_to_the_base_keeps_to_its_budget() -> None:
    size = {target: sum(file.st_size for layer in image.layers(found(target)) for _, file in files(layer))
            for target in image.TARGETS}
    print(*(f"{target}: {size[target] / MIB:.0f} MiB over the base" for target in size), sep="\n")
    assert size["runtime"] <= BUDGET
    assert size["model"] - size["runtime"] <= MODEL_BUDGET
    assert size["ray"] - size["runtime"] <= RAY_BUDGET
