"""The rows of a step that ask for more than its graph's own sampling: processors that edit their logits, logprobs.

All others keep what the graph drew for them. Made by ModelRunner for a step that has such rows.
"""

from __future__ import annotations

import numpy as np
import torch

from quire.engine.execution.request_table import MIN_P, TEMPERATURE, TOP_P, RequestTable
from quire.engine.execution.upload import Upload
from quire.engine.plan import NOTHING_LEFT, StepPlan
from quire.engine.sampling.grammar import Masks
from quire.engine.sampling.processor import Edited, EditedRows, places, processors
from quire.kernels import ops

Logprobs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class SpecialRows:
    """`wanted`: of the samples that want logprobs, by place, how many alternatives. `has_grammars`: `mask` is to be
    called before `draw`.
    """

    def __init__(self, plan: StepPlan, table: RequestTable) -> None:
        self._edited: list[Edited] = []
        self._places: list[int] = []  # of the edited among all samples
        self._rows: list[int] = []
        self.wanted: dict[int, int] = {}
        for place, (row, position) in enumerate(zip(plan.sampling_rows, plan.sampled_positions)):
            if row in table.special_rows:
                host = table.host[row]
                edited = Edited(len(self._edited), position, host.num_prompt_tokens, host.sampling)
                if host.sampling.grammar or any(processor.acts(edited) for processor in processors()):
                    self._edited.append(edited)
                    self._places.append(place)
                    self._rows.append(row)
                if host.sampling.num_alternatives >= 0:
                    self.wanted[place] = host.sampling.num_alternatives
        self._following = [row for row in self._edited if row.sampling.grammar]
        self.edits_all = len(self._edited) == sum(plan.samples) > 0
        self._acting = [(processor, acted_on) for processor in processors()
                        if (acted_on := [row for row in self._edited if processor.acts(row)])]
        self._names: dict[str, list[str]] = {}
        self._is_filtered = any(table.host[row].filtered for row in self._rows)

    @property
    def has_grammars(self) -> bool:
        return bool(self._following)

    def pack(self, upload: Upload) -> None:
        self._upload = upload
        if self._edited:
            numbers = [(row.position, row.num_prompt) for row in self._edited]
            upload.add("edited", np.array([self._places, self._rows, *zip(*numbers)], np.int32))
        for processor, rows in self._acting:
            packed = processor.pack(rows)
            self._names[processor.name] = list(packed)
            for name, array in packed.items():
                upload.add(f"{processor.name} {name}", array)
        if self._following:
            upload.add("following", places(self._following, [1] * len(self._following)))
        if self.wanted:
            upload.add("told", np.array(list(self.wanted), np.int32))

    def edit(self, logits: torch.Tensor, table: RequestTable) -> None:
        """logits: [samples, vocab], which stay as they are. All that can be queued before masks are there."""
        if not self._edited:
            return
        upload = self._upload
        self._on_device = upload["edited"]
        places, rows, positions, num_prompt = self._on_device
        self._logits = logits[places].float()
        edited = EditedRows(table.tokens, rows, positions, num_prompt)
        for processor, _ in self._acting:
            sent = {name: upload[f"{processor.name} {name}"] for name in self._names[processor.name]}
            processor.apply(self._logits, sent, edited)
        floats = table.floats[:, rows]
        self._how = (floats[TEMPERATURE], table.top_k[rows], floats[TOP_P], floats[MIN_P], table.seeds[rows], positions)

    def mask(self, masks: Masks) -> None:
        """masks: of those of the rows that follow a grammar, in their order."""
        masks.hold_back_ends(self._following)
        bits = masks.bits.to(self._logits.device, non_blocking=True)
        ops.mask_tokens(self._logits, self._upload["following"], bits)

    def draw(self, token_ids: torch.Tensor, table: RequestTable) -> torch.Tensor:
        """[samples] -> the same, those of edited rows drawn anew and written to the table."""
        if not self._edited:
            return token_ids
        drawn = ops.sample(self._logits, *self._how, filtered=self._is_filtered)
        drawn = torch.where(self._logits.amax(1) == -torch.inf, NOTHING_LEFT, drawn)
        places, rows, positions, _ = self._on_device
        table.tokens[rows, positions] = drawn.clamp(min=0)  # the next step may read it before the sample is ended
        token_ids = token_ids.clone()
        token_ids[places] = drawn
        return token_ids

    def logprobs(self, logits: torch.Tensor, token_ids: torch.Tensor) -> Logprobs | None:
        """Of the raw logits, for the samples in `wanted`, in that order."""
        if not self.wanted:
            return None
        told = self._upload["told"]
        return ops.logprobs(logits[told], token_ids[told].clamp(min=0), max(self.wanted.values()))
