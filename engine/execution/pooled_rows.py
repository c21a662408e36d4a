"""Sums of rows' hidden states, behind the final norm and in float32, for prompts that yield a vector.

Of each row the tokens are its last ones in the step: nothing of them but a row's last is there where nobody asked for
more (StepPlan.needs_all_tokens). Made by ModelRunner.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch

from quire.engine.execution.upload import Upload
from quire.engine.plan import StepPlan


def pack(plan: StepPlan, upload: Upload) -> None:
    if max(plan.pooled_counts) == 1:
        upload.add("pooled", np.array(_ends(plan), np.int32) - 1)


def sums(hidden: torch.Tensor, plan: StepPlan, upload: Upload,
         features: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """[tokens or rows of the step, hidden] -> [pooled rows, width] float32."""
    if max(plan.pooled_counts) == 1:
        return features(hidden.index_select(0, upload["pooled"])).float()
    # A row at a time: its tokens are not copied, and added up in the same order whatever else is in the step.
    return torch.stack([features(hidden[end - count:end]).sum(0, dtype=torch.float32)
                        for end, count in zip(_ends(plan), plan.pooled_counts)])


def _ends(plan: StepPlan) -> list[int]:
    """Of each pooled row, the place behind its last token among those that the last layer returns."""
    if plan.only_decodes or not plan.needs_all_tokens:
        return [place + 1 for place in plan.pooled_places]
    ends = list(accumulate(plan.num_tokens))
    return [ends[place] for place in plan.pooled_places]
