"""How checkpoints lay out the projections of q, k and v, as parts of one product: q of all heads, then k, then v.

Refuses to know what the projections mean. Called by the models; `self_attention` multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.engine.division import ATTENTION_HEADS
from quire.engine.parallel import Parallel
from quire.engine.weights.scheme import Part


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads there are, how wide, and which are this rank's."""

    num: int
    num_kv: int
    dim: int
    mine: slice
    kv_mine: slice

    @classmethod
    def of(cls, num: int, num_kv: int, dim: int, parallel: Parallel) -> Heads:
        """Raises ConfigError where they do not divide by the ranks."""
        return cls(num, num_kv, dim, parallel.share(num, ATTENTION_HEADS), parallel.share_kv_heads(num_kv))

    @property
    def num_mine(self) -> int:
        return int(self.mine.stop - self.mine.start)

    @property
    def num_kv_mine(self) -> int:
        return int(self.kv_mine.stop - self.kv_mine.start)


def separate(heads: Heads, q: str = "q_proj", k: str = "k_proj", v: str = "v_proj") -> list[Part]:
    """Three tensors."""
    kv = heads.num_kv * heads.dim
    return [Part(q, heads.num * heads.dim, _rows(heads.mine, heads.dim)),
            Part(k, kv, _rows(heads.kv_mine, heads.dim)), Part(v, kv, _rows(heads.kv_mine, heads.dim))]


def stacked(heads: Heads, name: str) -> list[Part]:
    """One tensor: q of all heads, then k, then v."""
    total = (heads.num + 2 * heads.num_kv) * heads.dim
    k, v = heads.num, heads.num + heads.num_kv  # heads before the first of k, of v
    return [Part(name, total, _rows(heads.mine, heads.dim)), Part(name, total, _rows(heads.kv_mine, heads.dim, k)),
            Part(name, total, _rows(heads.kv_mine, heads.dim, v))]


def grouped(heads: Heads, name: str) -> list[Part]:
    """One tensor, KV head by KV head: q of the query heads that share it, its k, its v. With as many KV heads as query
    heads that is [head, 3, dim]."""
    group, total = heads.num // heads.num_kv, (heads.num + 2 * heads.num_kv) * heads.dim

    def rows(indices: range, place: int | None) -> tuple[slice, ...]:
        starts = [(i // group * (group + 2) + i % group if place is None else i * (group + 2) + place) * heads.dim
                  for i in indices]
        return tuple(slice(start, start + heads.dim) for start in starts)

    kv = range(heads.kv_mine.start, heads.kv_mine.stop)
    return [Part(name, total, rows(range(heads.mine.start, heads.mine.stop), None)),
            Part(name, total, rows(kv, group)), Part(name, total, rows(kv, group + 1))]


def _rows(heads: slice, dim: int, before: int = 0) -> slice:
    return slice((heads.start + before) * dim, (heads.stop + before) * dim)
