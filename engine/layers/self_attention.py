"""The attention block of a decoder layer: one product for q, k and v, paged attention, one product out.

Refuses to know the norms and residuals of a layer. Called by the models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.attention.paged import PagedAttention
from quire.engine.layers.linear import ColumnParallelLinear, RowParallelLinear
from quire.engine.layers.qkv import Heads
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View
from quire.engine.weights.kv_scales import kv_scales
from quire.engine.weights.scheme import Part
from quire.kernels import ops


@dataclass(frozen=True, slots=True)
class Projections:
    """The weights of the block: `qkv` as layers/qkv.py lays them out, the output's name, which have biases."""

    qkv: list[Part]
    out: str = "o_proj"
    qkv_bias: bool = False
    out_bias: bool = False
    transposed: bool = False  # as in linear.ColumnParallelLinear


class QKNorms(Protocol):
    def __call__(self, qk: torch.Tensor, num_q: int) -> None:
        """[tokens, heads, head_dim], those of q first, in place."""


class HeadNorms:
    """RMS norms of each head of q and of k, before the rotation."""

    def __init__(self, view: View, head_dim: int, eps: float, *, one_plus: bool = False) -> None:
        """`one_plus`: as norm.RMSNorm's."""
        self._q, self._k = (view.take(f"{name}.weight", (head_dim,)) for name in ("q_norm", "k_norm"))
        if one_plus:
            self._q, self._k = self._q.float() + 1, self._k.float() + 1
        self._eps = eps

    def __call__(self, qk: torch.Tensor, num_q: int) -> None:
        ops.norm_heads(qk, self._q, self._k, num_q, self._eps)


class WholeNorms:
    """RMS norms of q and of k over all their heads, those of other ranks included."""

    def __init__(self, view: View, heads: Heads, eps: float, parallel: Parallel) -> None:
        def take(name: str, count: int, mine: slice) -> torch.Tensor:
            rows = slice(mine.start * heads.dim, mine.stop * heads.dim)
            return view.take(f"{name}.weight", (count * heads.dim,), rows=rows).view(-1, heads.dim)

        self._q, self._k = take("q_norm", heads.num, heads.mine), take("k_norm", heads.num_kv, heads.kv_mine)
        self._counts = (heads.num * heads.dim, heads.num_kv * heads.dim)
        # With fewer KV heads than ranks, several ranks hold the same one.
        self._num_copies = heads.num_kv_mine * parallel.size // heads.num_kv
        self._eps = eps
        self._parallel = parallel

    def __call__(self, qk: torch.Tensor, num_q: int) -> None:
        q, k = qk[:, :num_q], qk[:, num_q:]
        squares = torch.stack([x.float().square().sum((1, 2)) for x in (q, k)])
        squares[1] /= self._num_copies
        squares = self._parallel.all_reduce(squares)
        for x, weight, total, count in zip((q, k), (self._q, self._k), squares, self._counts):
            scale = torch.rsqrt(total / count + self._eps)[:, None, None]
            x.copy_((x.float() * scale).to(x.dtype) * weight)


class SelfAttention:
    """`clip`: largest size of a value of q, k or v. `query_factors` [positions]: what a token's queries are multiplied
    by, after their rotation or before it."""

    def __init__(self, view: View, hidden_size: int, heads: Heads, projections: Projections, attention: PagedAttention,
                 parallel: Parallel, *, norms: QKNorms | None = None, clip: float | None = None,
                 query_factors: torch.Tensor | None = None) -> None:
        self._qkv = ColumnParallelLinear(view, hidden_size, projections.qkv, bias=projections.qkv_bias,
                                         transposed=projections.transposed)
        columns = slice(heads.mine.start * heads.dim, heads.mine.stop * heads.dim)
        self._out = RowParallelLinear(view.sub(projections.out), heads.num * heads.dim, hidden_size, columns, parallel,
                                      bias=projections.out_bias, transposed=projections.transposed)
        self._attention = attention.scaled(*kv_scales(view))
        self._heads = heads
        self._norms = norms
        self._clip = clip
        self._query_factors = query_factors

    def __call__(self, x: torch.Tensor, inputs: AttentionInputs, kv_cache: tuple[torch.Tensor, torch.Tensor],
                 *, only_last: bool) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden], this rank's part of the sum; with `only_last` [seqs, hidden]."""
        qkv = self._qkv(x)
        if self._clip is not None:
            qkv.clamp_(-self._clip, self._clip)
        num_q, num_kv = self._heads.num_mine, self._heads.num_kv_mine
        if self._norms is not None:
            self._norms(qkv.view(qkv.shape[0], -1, self._heads.dim)[:, :num_q + num_kv], num_q)
        if self._query_factors is not None:
            qkv[:, :num_q * self._heads.dim] *= self._query_factors[inputs.positions].to(qkv.dtype).unsqueeze(1)
        return self._out(self._attention(qkv, inputs, kv_cache, only_last=only_last))
