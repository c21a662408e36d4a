"""CUDA graphs of decode steps, one a batch size, sharing one memory pool.

A graph reads its rows and positions from static buffers and everything else from the request table, so a replay needs
two small copies. Steps between two sizes use the larger one, padded with the table's spare row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.attention.inputs import AttentionInputs
from engine.execution.batch import slots_of
from engine.execution.kv_cache import KVCache
from engine.execution.request_table import RequestTable
from engine.models.base import CausalLM
from engine.plan import StepPlan

MAX_SIZE = 1024


def sizes_up_to(limit: int) -> list[int]:
    """1, 2, 4, 8, then every 8 to 64, 16 to 256, 32 to 512, 64: from 64 on, padding costs at most a fifth."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 512, 32), *range(512, MAX_SIZE + 1, 64)]
    kept = [size for size in sizes if size < limit]
    return [*kept, min(limit, MAX_SIZE)]


@dataclass(slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor  # [size, vocab]


class DecodeGraphs:
    def __init__(self, model: CausalLM, table: RequestTable, kv_caches: list[KVCache], block_size: int) -> None:
        self._model = model
        self._table = table
        self._kv_caches = kv_caches
        self._block_size = block_size
        self._captured: dict[int, _Captured] = {}
        self._size_for: list[int] = []  # number of rows -> captured size
        self._rows = torch.empty(0)
        self._positions = torch.empty(0)

    def capture(self, max_rows: int, max_context_len: int, progress: Callable[[str, float], None]) -> None:
        """Capture every size, largest first so that the pool is as large as it will get at once."""
        sizes = sizes_up_to(max_rows)
        device = self._table.tokens.device
        self._rows = torch.full((sizes[-1],), self._table.padding_row, dtype=torch.int32, device=device)
        self._positions = torch.full((sizes[-1],), -1, dtype=torch.int32, device=device)
        pool = torch.cuda.graph_pool_handle()
        for done, size in enumerate(reversed(sizes)):
            progress("capturing graphs", done / len(sizes))
            if done == 0:
                self._forward(size, max_context_len)  # compiles kernels and warms the allocator outside a capture
                torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._forward(size, max_context_len)
            self._captured[size] = _Captured(graph, logits)
        self._size_for = [next(size for size in sizes if size >= rows) for rows in range(sizes[-1] + 1)]

    def fits(self, plan: StepPlan) -> bool:
        return plan.num_decodes == len(plan.rows) < len(self._size_for)

    def replay(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocab] of one decode step; overwritten by the next replay."""
        count = rows.shape[0]
        size = self._size_for[count]
        self._rows[:count] = rows
        self._positions[:count] = positions
        if count < size:
            self._rows[count:size] = self._table.padding_row
            self._positions[count:size] = -1
        captured = self._captured[size]
        captured.graph.replay()
        return captured.logits[:count]

    def _forward(self, size: int, max_context_len: int) -> torch.Tensor:
        rows, positions = self._rows[:size], self._positions[:size]
        real = positions >= 0
        places = positions.clamp(min=0)
        slots = torch.where(real, slots_of(self._table, rows, places, self._block_size), -1).to(torch.int32)
        inputs = AttentionInputs(
            positions=places,
            slots=slots,
            query_starts=torch.arange(size + 1, dtype=torch.int32, device=rows.device),
            context_lens=positions + 1,
            block_tables=self._table.block_tables.index_select(0, rows),
            num_decodes=size,
            max_query_len=1,
            max_context_len=max_context_len,
        )
        token_ids = self._table.tokens[rows, places]
        return self._model.logits(self._model.forward(token_ids, inputs, self._kv_caches))
