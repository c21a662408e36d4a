"""The fuzz targets by name.

Each is a file of this folder with two functions: `seeds()` gives valid inputs, and `target(data)` hands `data` to the
real code. `target` lets pass only the errors that this code documents; any other exception is a bug.
"""

from __future__ import annotations

import importlib
from types import ModuleType

TARGETS = {
    "requests": "tests.fuzz.request_bodies",
    "gguf": "tests.fuzz.gguf_file",
    "safetensors": "tests.fuzz.safetensors_file",
    "pickled": "tests.fuzz.pickled_file",
    "images": "tests.fuzz.image_file",
    "keys": "tests.fuzz.key_file",
    "frames": "tests.fuzz.engine_frames",
}


def load(name: str) -> ModuleType:
    return importlib.import_module(TARGETS[name])
