"""One permanent row per running sample, on the device: its tokens, its block table, its sampling numbers.

A step gathers its inputs from here by row number; the sampler writes new tokens here, so that the next step can read
them without the host having seen them. Filled from StepPlan by ModelRunner; the host keeps only what selects kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from quire.engine.execution.upload import Upload
from quire.engine.messages import Sampling
from quire.engine.plan import StepPlan
from quire.engine.sampling.processor import Edited, processors

# Order of the float columns of `floats`.
TEMPERATURE, TOP_P, MIN_P = range(3)


@dataclass(slots=True)
class HostRow:
    """What the host must know of a row to choose kernels and processors."""

    num_prompt_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    filtered: bool = field(init=False)
    special: bool = field(init=False)  # a step graph's own sampling may not be enough, in this step or one after it

    def __post_init__(self) -> None:
        s = self.sampling
        self.filtered = s.temperature > 0 and (s.top_p < 1 or s.top_k > 0 or s.min_p > 0)
        first = Edited(0, self.num_prompt_tokens, self.num_prompt_tokens, s)
        self.special = (s.num_alternatives >= 0 or bool(s.grammar)
                        or any(processor.acts(first) for processor in processors()))


@dataclass(slots=True)
class RequestTable:
    tokens: torch.Tensor  # [rows, max_model_len] int32
    block_tables: torch.Tensor  # [KV groups, rows, max_blocks] int32
    num_prompt: torch.Tensor  # [rows] int32
    top_k: torch.Tensor  # [rows] int32
    floats: torch.Tensor  # [3, rows] float32
    seeds: torch.Tensor  # [rows] int64
    # [rows] int32, of models with M-RoPE: what is added to the position of a token behind its prompt's last image.
    deltas: torch.Tensor | None = None
    host: list[HostRow] = field(default_factory=list)
    special_rows: set[int] = field(default_factory=set)

    @classmethod
    def empty(cls, num_rows: int, max_model_len: int, block_size: int, device: torch.device,
              num_groups: int = 1, *, with_deltas: bool = False) -> RequestTable:
        # One spare row at the end: padded entries of a captured step point there and do no harm.
        rows, blocks = num_rows + 1, -(-max_model_len // block_size)

        def int32(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        return cls(
            tokens=int32(rows, max_model_len + 1),
            block_tables=int32(num_groups, rows, blocks),
            num_prompt=int32(rows),
            top_k=int32(rows),
            floats=torch.zeros((3, rows), dtype=torch.float32, device=device),
            seeds=torch.zeros(rows, dtype=torch.int64, device=device),
            deltas=int32(rows) if with_deltas else None,
            host=[HostRow() for _ in range(rows)],
        )

    @property
    def padding_row(self) -> int:
        return len(self.host) - 1

    def pack(self, plan: StepPlan, upload: Upload) -> None:
        """Take in the plan's changes on the host, and put the device's share into the step's one upload."""
        if plan.new_rows:
            new = plan.new_rows
            for n in new:
                host = self.host[n.row] = HostRow(n.num_prompt_tokens, n.sampling)
                (self.special_rows.add if host.special else self.special_rows.discard)(n.row)
            upload.add("new_rows", np.array([n.row for n in new], np.int32))
            upload.add("new_prompt", np.array([n.num_prompt_tokens for n in new], np.int32))
            upload.add("new_top_k", np.array([n.sampling.top_k for n in new], np.int32))
            upload.add("new_floats", np.array([_floats(n.sampling) for n in new], np.float32).T)
            upload.add("new_seeds", np.array([n.seed for n in new], np.int64))
            upload.add("new_tokens", np.concatenate([np.array(n.token_ids, np.int32) for n in new]))
        if plan.block_rows:
            upload.add("block_updates", np.array(
                [plan.block_groups, plan.block_rows, plan.block_columns, plan.block_ids], np.int32))
        if plan.known_places:
            rows, starts = (list(map(of.__getitem__, plan.known_places)) for of in (plan.rows, plan.starts))
            upload.add("known", np.array([rows, starts, plan.known_ids], np.int32))

    def apply(self, plan: StepPlan, upload: Upload) -> None:
        """Carry out on the device what `pack` sent."""
        if plan.new_rows:
            rows = upload["new_rows"]
            self.num_prompt[rows] = upload["new_prompt"]
            self.top_k[rows] = upload["new_top_k"]
            self.floats[:, rows] = upload["new_floats"]
            self.seeds[rows] = upload["new_seeds"]
            if self.deltas is not None:
                self.deltas[rows] = upload["new_deltas"]
            tokens, offset = upload["new_tokens"], 0
            for new in plan.new_rows:
                self.tokens[new.row, : len(new.token_ids)] = tokens[offset: offset + len(new.token_ids)]
                offset += len(new.token_ids)
        if plan.block_rows:
            groups, rows, columns, ids = upload["block_updates"]
            self.block_tables[groups, rows, columns] = ids
        if plan.known_places:
            rows, positions, ids = upload["known"]
            self.tokens[rows, positions] = ids


def _floats(sampling: Sampling) -> tuple[float, ...]:
    return (sampling.temperature, sampling.top_p, sampling.min_p)
