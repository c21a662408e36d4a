"""From a checkpoint's tensors to a product: as floats, or packed where the view says that they are.

Called by whatever multiplies: linear layers, heads, experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quire.engine.errors import WeightError
from quire.engine.layers.product import Product, gated_product, product
from quire.engine.quantization.cpu_packed_product import CpuPackedProduct
from quire.engine.quantization.cpu_product import EightBitProduct
from quire.engine.quantization.product import QuantizedProduct
from quire.engine.quantization_config import INT8
from quire.engine.weights.checkpoint import ALL, View
from quire.engine.weights.scheme import Part, WeightScheme
from quire.kernels import ops
from quire.kernels.packed_weight import PackedWeight, joined


def load_product(view: View, parts: Sequence[Part], in_features: int, bias: torch.Tensor | None, *,
                 columns: slice = ALL, gate: str = "", transposed: bool = False, has_bias: bool | None = None,
                 is_layer: bool = True) -> Product:
    """[n, this rank's inputs] -> [n, out], the parts one after the other. `bias`: [out], added to it.

    With `gate`, an activation's name, act(first half) * second half is returned. `has_bias`: whether the model has one,
    where this rank does not add it. `is_layer`: as View.scheme's.
    """
    schemes = [view.scheme(part.name, is_layer=is_layer) for part in parts]
    if any(schemes) and not (bias is not None if has_bias is None else has_bias):
        for part in parts:
            _refuse_bias(view.sub(part.name), part)
    plain: Product
    if any(schemes) and view.stays_packed:
        pieces = [_piece(view, part, scheme, in_features, columns, transposed) for part, scheme in zip(parts, schemes)]
        plain = _product_of(pieces, bias)
    elif all(schemes) and _may_be_eight_bits(view, parts):
        plain = _in_eight_bits([scheme.read(view.sub(part.name), part, in_features, columns, transposed=transposed)
                                for part, scheme in zip(parts, schemes) if scheme is not None], bias)
    else:
        weight = load_weight(view, parts, in_features, columns=columns, transposed=transposed)
        return gated_product(weight, bias, gate, view.cpu_weights) if gate else product(weight, bias, view.cpu_weights)
    return plain if not gate else lambda x: ops.gated_activation(plain(x), gate)


def load_weight(view: View, parts: Sequence[Part], in_features: int, *, columns: slice = ALL, transposed: bool = False,
                out: torch.Tensor | None = None) -> torch.Tensor:
    """[out, this rank's inputs] of floats, whatever it is in the checkpoint; into `out` where given."""
    if out is None:
        size = len(range(*columns.indices(in_features)))
        out = view.empty(sum(part.size for part in parts), size)
    for part, place in zip(parts, out.split([part.size for part in parts])):
        module = view.sub(part.name)
        if (scheme := module.scheme(is_layer=False)) is None:
            module.take("weight", (part.num_rows, in_features), rows=part.rows, columns=columns, transposed=transposed,
                        out=place)
            continue
        packed = scheme.read(module, part, in_features, columns, transposed=transposed)
        if not out.is_meta:
            _unpack(packed, place)
    return out


def _unpack(packed: PackedWeight, out: torch.Tensor) -> None:
    """As floats, their columns in the model's order."""
    floats = ops.unpack(packed, out.dtype)
    out.zero_().index_add_(1, packed.order, floats) if packed.order is not None else out.copy_(floats)


def _may_be_eight_bits(view: View, parts: Sequence[Part]) -> bool:
    """Whether weights are wanted in 8 bits, and the checkpoint may have them so: GGUF's blocks never are."""
    return (view.cpu_weights == INT8 and view.device.type == "cpu"
            and not any(view.sub(part.name).block_type("weight") for part in parts))


def _in_eight_bits(pieces: Sequence[PackedWeight], bias: torch.Tensor | None) -> Product:
    """The checkpoint's own numbers where it has a scale for each output, else rounded anew."""
    whole = joined(pieces)
    own = None if whole is None else EightBitProduct.of_packed(whole, bias)
    if own is not None:
        return own
    weight = torch.empty(sum(piece.outputs for piece in pieces), pieces[0].size)
    for piece, place in zip(pieces, weight.split([piece.outputs for piece in pieces])):
        _unpack(piece, place)
    return product(weight, bias, INT8)


def _piece(view: View, part: Part, scheme: WeightScheme | None, in_features: int, columns: slice, transposed: bool
           ) -> PackedWeight | torch.Tensor:
    if scheme is None:
        return load_weight(view, [part], in_features, columns=columns, transposed=transposed)
    return scheme.read(view.sub(part.name), part, in_features, columns, transposed=transposed)


def _product_of(pieces: Sequence[PackedWeight | torch.Tensor], bias: torch.Tensor | None) -> Product:
    packed = [piece for piece in pieces if isinstance(piece, PackedWeight)]
    whole = joined(packed) if len(packed) == len(pieces) else None
    if whole is not None:
        return _packed_product(whole, bias)
    # Parts in several forms, as a checkpoint may leave one of them alone
    counts = [piece.outputs if isinstance(piece, PackedWeight) else piece.shape[0] for piece in pieces]
    biases = [None] * len(pieces) if bias is None else bias.split(counts)
    products = [_packed_product(piece, own) if isinstance(piece, PackedWeight) else product(piece, own)
                for piece, own in zip(pieces, biases)]
    return lambda x: torch.cat([one(x) for one in products], -1)


def _packed_product(weight: PackedWeight, bias: torch.Tensor | None) -> Product:
    return CpuPackedProduct.of(weight, bias) or QuantizedProduct(weight, bias)


def _refuse_bias(view: View, part: Part) -> None:
    """Tools of old wrote a bias of zeros with every quantised layer, also where the model has none."""
    if view.has("bias") and not (bias := view.take("bias", (part.num_rows,))).is_meta and bool(bias.any()):
        raise WeightError(f"tensor '{view.name}.bias' is not zero, and the model has no place for it")
