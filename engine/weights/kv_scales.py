"""What checkpoints say that a KV cache in 8 bits is scaled by: K and V are held divided by it.

Called by the attention block, with the view of its module.
"""

from __future__ import annotations

import math

import torch

from quire.engine.errors import WeightError
from quire.engine.weights.checkpoint import View

# Of ModelOpt, vLLM's own exports, compressed-tensors old and new; the first that is there counts.
_FORMS = ("{0}_proj.{0}_scale", "{0}_scale", "attn.{0}_scale", "qkv_proj.{0}_scale", "{0}_proj.output_scale",
          "{0}_cache.scale", "kv_scale")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def kv_scales(view: View) -> tuple[float, float]:
    """Those of K and of V. Where there is one of them it is both's, and where there is none they are 1.

    Raises:
        WeightError: a scale is no single number, or none that can divide.
    """
    found = {letter: _first(view, letter) for letter in "kv"}
    k, v = found["k"], found["v"]
    return k or v or 1.0, v or k or 1.0


def _first(view: View, letter: str) -> float | None:
    names = [name for form in _FORMS if view.has(name := form.format(letter))]
    view.skip(*names)
    return _read(view, names[0]) if names and view.device.type != "meta" else None


def _read(view: View, name: str) -> float:
    shape = view.shape(name) or ()
    full = f"{view.name}.{name}"
    if math.prod(shape) != 1:
        raise WeightError(f"tensor '{full}' has shape {list(shape)}; of the KV cache each "
                          "layer has one scale for K and one for V, not one a head")
    scale = float(view.take_raw(name, shape, _FLOATS))
    if not (math.isfinite(scale) and scale > 0):
        raise WeightError(f"tensor '{full}' is {scale}; a scale of the KV cache is a positive number")
    return scale
