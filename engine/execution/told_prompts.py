"""Logprobs of prompts' tokens, slice by slice: no more logits are there at once than a slice has, whatever the prompt.

Made by ModelRunner in a step that computes a part of such a prompt, from what its last layer made of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from quire.engine.execution.request_table import RequestTable
from quire.engine.execution.upload import Upload
from quire.engine.plan import Logprobs, StepPlan
from quire.kernels import ops

SLICE = 64  # tokens: 40 MB of float32 logits with a vocabulary of 150,000


@dataclass(frozen=True, slots=True)
class ToldPrompts:
    tensors: tuple[torch.Tensor, ...]  # of all tokens: as ops.logprobs
    counts: list[int]  # tokens of each row that is told of
    wanted: list[int]  # alternatives of each

    @classmethod
    def of(cls, hidden: torch.Tensor, plan: StepPlan, upload: Upload, table: RequestTable,
           logits: Callable[[torch.Tensor], torch.Tensor]) -> ToldPrompts:
        """hidden: [tokens of the step, hidden]."""
        wanted = [table.host[plan.rows[place]].sampling.prompt_logprobs for place in plan.told_places]
        found = []
        for tokens, rows, positions in zip(*(part.split(SLICE) for part in upload["told_prompts"])):
            found.append(ops.logprobs(logits(hidden[tokens]), table.tokens[rows, positions], max(wanted)))
        return cls(tuple(torch.cat(parts) for parts in zip(*found)), plan.told_counts, wanted)

    def lists(self) -> list[list[Logprobs]]:
        """Of each row, of each of its tokens. The tensors must be on the host."""
        own, ranks, ids, top = (tensor.tolist() for tensor in self.tensors)
        rows, end = [], 0
        for count, k in zip(self.counts, self.wanted):
            first, end = end, end + count
            rows.append([(own[i], ranks[i], ids[i][:k], top[i][:k]) for i in range(first, end)])
        return rows
