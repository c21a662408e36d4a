"""What edits logits before a token is drawn: the protocol, and the processors in the order in which they are applied.

A step samples all its rows alike, in its graph. Rows that a processor acts on are edited and sampled once more, and
overwritten; no other row is touched by it. A processor keeps nothing between steps: what a row asks is in its
`Sampling`, its tokens are in the request table.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch

from quire.engine.messages import Sampling


@dataclass(frozen=True, slots=True)
class Edited:
    """A row of a step that is edited."""

    place: int  # among those
    position: int  # of the token that is to be drawn
    num_prompt: int
    sampling: Sampling

    @property
    def is_too_short(self) -> bool:
        """Whether min_tokens asks for this token, and it may not be the end."""
        return self.position - self.num_prompt < self.sampling.min_tokens


@dataclass(frozen=True, slots=True)
class EditedRows:
    """The same on the device, of all of them: [edited] int32 each, and the tokens of the whole request table."""

    tokens: torch.Tensor  # [rows, max_len] int32
    row_ids: torch.Tensor
    positions: torch.Tensor
    num_prompt: torch.Tensor


class Processor(Protocol):
    name: str

    def acts(self, row: Edited) -> bool:
        """Whether it changes anything for this row in this step."""

    def pack(self, rows: list[Edited]) -> dict[str, np.ndarray]:
        """What `apply` needs of the rows that it acts on, to be sent with the step."""

    def apply(self, logits: torch.Tensor, sent: dict[str, torch.Tensor], rows: EditedRows) -> None:
        """logits: [edited rows, vocab] float32, edited in place; those of rows that it does not act on stay as they
        are. `sent`: what `pack` gave, on the device."""


# What may be drawn at all comes first; then biases and penalties, which leave -inf as it is.
_PROCESSORS = ("allowed_ids:AllowedIds", "bad_words:BadWords", "min_tokens:MinTokens",
               "logit_bias:LogitBias", "penalties:Penalties")


@cache
def processors() -> tuple[Processor, ...]:
    found = []
    for entry in _PROCESSORS:
        module, name = entry.split(":")
        found.append(getattr(importlib.import_module(f"quire.engine.sampling.{module}"), name)())
    return tuple(found)


def places(rows: list[Edited], counts: list[int]) -> np.ndarray:
    """Each row's place so many times, as int32."""
    return np.repeat(np.array([row.place for row in rows], np.int32), counts)
