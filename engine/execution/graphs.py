"""CUDA graphs of whole steps, from request table to sampled tokens; one for each size, sharing one memory pool.

A graph reads one vector of integers (rows, positions, lengths; `pack` makes it on the host) and everything else from
the request table, so a step is one small copy and one launch. Steps between two sizes use the larger one: padded
entries point to the table's spare row. Steps that fit no size are run kernel by kernel.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.execution.batch import token_positions
from quire.engine.execution.kv_cache import KVCache
from quire.engine.execution.request_table import MIN_P, TEMPERATURE, TOP_P, RequestTable
from quire.engine.models.base import CausalLM
from quire.engine.plan import StepPlan
from quire.kernels import ops
from quire.kernels.launch import SKINNY_ROWS

Vector = TypeVar("Vector", np.ndarray, torch.Tensor)

MAX_DECODES = 1024
# Of steps that also prefill. Longer ones keep the device busy for longer than the host takes to launch their kernels.
MIXED_DECODES = (1, 16, 64, 128, 256)
PREFILL_TOKENS = (16, 64, 128, 192, 256, 384, 512)
MAX_PREFILLS = 8
MEASURED_GRAPHS = 8
MIN_SHARING = 16  # decodes: fewer are not worth a second set of graphs


@dataclass(frozen=True, slots=True)
class Size:
    """What a graph has room for: so many sequences of one token, then up to MAX_PREFILLS with so many in all."""

    num_decodes: int
    num_prefill_tokens: int = 0
    shared: bool = False

    @property
    def num_seqs(self) -> int:
        return self.num_decodes + (MAX_PREFILLS if self.num_prefill_tokens else 0)

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + self.num_prefill_tokens

    @property
    def _lengths(self) -> dict[str, int]:
        """The parts of the vector of integers that a graph of this size reads."""
        seqs, tokens, shared = self.num_seqs, self.num_tokens, self.num_decodes if self.shared else 0
        return {"rows": seqs, "context_lens": seqs, "sample_positions": seqs, "last_tokens": seqs,
                "query_starts": seqs + 1, "token_rows": tokens, "positions": tokens, "shared_lens": shared,
                "members": shared}

    @property
    def vector_length(self) -> int:
        return sum(self._lengths.values())

    def cut(self, vector: Vector) -> dict[str, Vector]:
        parts, start = {}, 0
        for name, length in self._lengths.items():
            parts[name] = vector[start: start + length]
            start += length
        return parts

    def sample_places(self, plan: StepPlan) -> np.ndarray:
        """Of the plan's rows that sample, among the sequences of a graph of this size."""
        places = np.arange(len(plan.rows), dtype=np.int32)
        places[plan.num_decodes:] += self.num_decodes - plan.num_decodes
        return places[np.array(plan.samples, bool)]


def decode_sizes(limit: int) -> list[int]:
    """1, 2, 4, 8, then every 8 to 64, 16 to 256, 32 to 512, 64: from 64 on, padding costs at most a fifth."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 512, 32), *range(512, MAX_DECODES + 1, 64)]
    largest = min(limit, MAX_DECODES)
    return [*(size for size in sizes if size < largest), largest]


def all_sizes(max_rows: int, *, with_sharing: bool) -> list[Size]:
    """Largest first, so that the pool is as large as it will get at once."""
    decodes = decode_sizes(max_rows)
    sizes = [Size(n) for n in decodes]
    if with_sharing:
        sizes += [Size(n, shared=True) for n in decodes if n >= MIN_SHARING]
    sizes += [Size(n, tokens) for n in MIXED_DECODES if n <= max_rows for tokens in PREFILL_TOKENS]
    return sorted(sizes, key=lambda size: -size.num_tokens)


def predicted_bytes(sizes: list[Size], capture: Callable[[list[Size]], None], free_bytes: Callable[[], int]) -> int:
    """What all graphs of `sizes` (largest first) will take, told by what some take that `capture` makes.

    Of each kind the largest makes the common pool as large as it gets. The others add what the driver keeps for a
    graph, which is much the same for all, since all have the same kernels.
    """
    kinds = {(size.shared, size.num_prefill_tokens > 0): size for size in reversed(sizes)}
    largest = [size for size in sizes if size in kinds.values()]
    others = [size for size in sizes if size not in largest]
    told = others[::max(1, len(others) // MEASURED_GRAPHS)]
    before = free_bytes()
    capture(largest)
    between = free_bytes()
    if not told:
        return before - between
    capture(told)
    each = (between - free_bytes()) / len(told)
    return before - between + math.ceil(each * len(others))


@dataclass(slots=True)
class Captured:
    graph: torch.cuda.CUDAGraph
    vector: torch.Tensor  # [vector_length] int32
    # Overwritten by the next replay of any graph.
    logits: torch.Tensor | None  # [seqs, vocab]; None on the stages of a pipeline that do not sample
    token_ids: torch.Tensor | None  # [seqs] int32, sampled without penalties; also written to the table


@contextmanager
def _little_to_collect() -> Iterator[None]:
    """torch before 2.9 collects garbage at each capture, which takes 0.2 s unless the objects that are here are set
    aside."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class StepGraphs:
    def __init__(self, model: CausalLM, table: RequestTable, kv_caches: list[KVCache], block_size: int,
                 max_context_len: int) -> None:
        self._model = model
        self._table = table
        self._kv_caches = kv_caches
        self._block_size = block_size
        self._max_context_len = max_context_len
        self._captured: dict[Size, Captured] = {}
        self._sizes: list[Size] = []  # captured, smallest first

    def capture(self, sizes: list[Size], progress: Callable[[str, float], None], pool: Any = None) -> None:
        """All of one `pool`, or of a new one, which is as large as the largest needs it."""
        pool = pool or torch.cuda.graph_pool_handle()
        warmed: set[tuple[bool, bool]] = set()
        with _little_to_collect():
            for done, size in enumerate(sizes):
                progress("capturing graphs", done / len(sizes))
                vector = self._padding(size)
                kind = (size.shared, size.num_prefill_tokens > 0)
                if kind not in warmed or size.num_tokens <= SKINNY_ROWS:
                    warmed.add(kind)
                    self._step(size, vector)  # compiles kernels, and allocates what they keep, outside a capture
                    torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # NCCL watches from its own
                    logits, token_ids = self._step(size, vector)
                self._captured[size] = Captured(graph, vector, logits, token_ids)
        self._sizes = sorted(self._captured, key=lambda size: (size.num_tokens, size.num_decodes))

    def rehearse(self, sizes: list[Size]) -> None:
        """Steps of some of the sizes, without a graph and over padding, that use the kernels of all."""
        for size in sizes:
            # Each number of few rows may have kernels of its own, and from there on they change seldom.
            telling = size.num_decodes <= 2 * SKINNY_ROWS or size.num_decodes.bit_count() == 1
            if telling and size.num_prefill_tokens in (0, PREFILL_TOKENS[0], PREFILL_TOKENS[-1]):
                self._step(size, self._padding(size))

    def size_for(self, plan: StepPlan) -> Size | None:
        """The smallest captured size that has room for the plan."""
        num_decodes, num_prefills = plan.num_decodes, len(plan.rows) - plan.num_decodes
        num_tokens = sum(plan.num_tokens[num_decodes:])
        shared = bool(plan.shared_places)
        if num_prefills > MAX_PREFILLS or (shared and num_prefills):
            return None
        size = self._smallest(num_decodes, num_tokens, shared=shared)
        if size is None and shared:  # none was captured: to read for each what they share costs less than no graph
            size = self._smallest(num_decodes, num_tokens, shared=False)
        return size

    def _smallest(self, num_decodes: int, num_prefill_tokens: int, *, shared: bool) -> Size | None:
        return next((size for size in self._sizes
                     if size.num_decodes >= num_decodes and size.num_prefill_tokens >= num_prefill_tokens
                     and size.shared == shared and bool(size.num_prefill_tokens) == bool(num_prefill_tokens)), None)

    def pack(self, plan: StepPlan, size: Size) -> np.ndarray:
        """The vector that a replay reads; an empty plan makes one of nothing but padding."""
        vector = np.empty(size.vector_length, np.int32)
        parts = size.cut(vector)
        n, room = plan.num_decodes, size.num_decodes
        rows, starts, lengths = (np.array(x, np.int32) for x in (plan.rows, plan.starts, plan.num_tokens))
        long = slice(room, room + len(rows) - n)
        ends = starts + lengths
        sampled = np.where(np.array(plan.samples, bool), ends, -1)
        for name, values, padding in (("rows", rows, self._table.padding_row), ("context_lens", ends, 0),
                                      ("sample_positions", sampled, -1)):
            part = parts[name]
            part.fill(padding)
            part[:n] = values[:n]
            part[long] = values[n:]
        query_starts = parts["query_starts"]
        query_starts[:room + 1] = np.arange(room + 1)
        stops = room + np.cumsum(lengths[n:])
        query_starts[room + 1:] = stops[-1] if len(stops) else room
        query_starts[room + 1: long.stop + 1] = stops
        parts["last_tokens"][:room] = np.arange(room)
        parts["last_tokens"][room:] = 0
        parts["last_tokens"][long] = stops - 1
        token_rows, positions = parts["token_rows"], parts["positions"]
        token_rows.fill(self._table.padding_row)
        positions.fill(-1)
        token_rows[:n], positions[:n] = rows[:n], starts[:n]
        if len(stops):
            tokens = slice(room, int(stops[-1]))
            token_rows[tokens], positions[tokens] = token_positions(rows[n:], starts[n:], lengths[n:])
        if size.shared:
            members = plan.shared_places
            parts["shared_lens"].fill(0)
            parts["shared_lens"][members] = plan.num_shared_tokens
            parts["members"].fill(-1)
            parts["members"][:len(members)] = members
        return vector

    def run(self, size: Size, vector: torch.Tensor) -> Captured:
        captured = self._captured[size]
        captured.vector.copy_(vector)
        captured.graph.replay()
        return captured

    def _padding(self, size: Size) -> torch.Tensor:
        return torch.from_numpy(self.pack(StepPlan(0), size)).to(self._table.tokens.device)

    def _step(self, size: Size, vector: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        table, parts = self._table, size.cut(vector)
        step = ops.gather_step(parts["rows"], parts["context_lens"], parts["token_rows"], parts["positions"],
                               table.tokens, table.block_tables, table.floats, table.top_k, table.seeds,
                               self._block_size, table.deltas)
        inputs = AttentionInputs(
            positions=step.places,
            slots=step.slots[0],
            query_starts=parts["query_starts"],
            context_lens=parts["context_lens"],
            block_tables=step.block_tables[0],
            num_decodes=size.num_decodes,
            max_query_len=max(size.num_prefill_tokens, 1),
            max_context_len=self._max_context_len,
            first_whole=size.num_seqs,
            last_tokens=parts["last_tokens"] if size.num_prefill_tokens else None,
            shared=(parts["shared_lens"], parts["members"]) if size.shared else None,
        ).of_groups(step.slots, step.block_tables)
        hidden = self._model.forward(step.token_ids, inputs, self._kv_caches)
        if hidden is None:
            return None, None
        logits = self._model.logits(hidden)
        targets = parts["sample_positions"]
        token_ids = ops.sample(logits, step.floats[TEMPERATURE], step.top_k, step.floats[TOP_P], step.floats[MIN_P],
                               step.seeds, targets, filtered=True)
        ops.put_tokens(table.tokens, parts["rows"], targets, token_ids)
        return logits, token_ids
