"""The attention block of a decoder layer: one product for q, k and v, paged attention, one product out.

Refuses to know the norms and residuals of a layer. Called by the models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.attention.paged import PagedAttention
from quire.engine.layers.linear import ColumnParallelLinear, Part, RowParallelLinear
from quire.engine.layers.qkv import Heads
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View
from quire.kernels import ops


@dataclass(frozen=True, slots=True)
class Projections:
    """The weights of the block: `qkv` as layers/qkv.py lays them out, the output's name, which have biases."""

    qkv: list[Part]
    out: str = "o_proj"
    qkv_bias: bool = False
    out_bias: bool = False
    transposed: bool = False  # as in linear.ColumnParallelLinear


class HeadNorms:
    """RMS norms of each head of q and of k, before the rotation."""

    def __init__(self, view: View, head_dim: int, eps: float, *, one_plus: bool = False) -> None:
        """`one_plus`: as norm.RMSNorm's."""
        self._q, self._k = (view.take(f"{name}.weight", (head_dim,)) for name in ("q_norm", "k_norm"))
        if one_plus:
            self._q, self._k = self._q.float() + 1, self._k.float() + 1
        self._eps = eps

    def __call__(self, qk: torch.Tensor, num_q: int) -> None:
        """[tokens, heads, head_dim], those of q first, in place."""
        ops.norm_heads(qk, self._q, self._k, num_q, self._eps)


class SelfAttention:
    def __init__(self, view: View, hidden_size: int, heads: Heads, projections: Projections, attention: PagedAttention,
                 parallel: Parallel, norms: HeadNorms | None = None) -> None:
        self._qkv = ColumnParallelLinear(view, hidden_size, projections.qkv, bias=projections.qkv_bias,
                                         transposed=projections.transposed)
        columns = slice(heads.mine.start * heads.dim, heads.mine.stop * heads.dim)
        self._out = RowParallelLinear(view.sub(projections.out), heads.num * heads.dim, hidden_size, columns, parallel,
                                      bias=projections.out_bias, transposed=projections.transposed)
        self._attention = attention
        self._heads = heads
        self._norms = norms

    def __call__(self, x: torch.Tensor, inputs: AttentionInputs, kv_cache: tuple[torch.Tensor, torch.Tensor],
                 *, only_last: bool) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden], this rank's part of the sum; with `only_last` [seqs, hidden]."""
        qkv = self._qkv(x)
        if self._norms is not None:
            num_q, num_kv = self._heads.num_mine, self._heads.num_kv_mine
            self._norms(qkv.view(qkv.shape[0], -1, self._heads.dim)[:, :num_q + num_kv], num_q)
        return self._out(self._attention(qkv, inputs, kv_cache, only_last=only_last))
