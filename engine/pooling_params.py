"""What a caller may ask of an embedding: fields, ranges and the messages of refusal.

Refuses to know the model; `quire.engine.frontend.pooling` checks what depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from quire.engine.arguments import flag, integer, shown, unsupported
from quire.engine.errors import InvalidRequestError

SIDES = ("right", "left")
TASKS = (None, "embed")


def _unsupported(*neutral: Any) -> Any:
    """A field of vLLM's that this version does not implement: it takes the values that ask for nothing."""
    return field(default=None, repr=False, metadata={"neutral": neutral})


@dataclass(slots=True, kw_only=True)
class PoolingParams:
    """An embedding of one prompt; the fields are vLLM's, and `truncation_side` that of its service.

    Args:
        dimensions: cut the vector to so many numbers, where the model was trained for it; before it is normalised.
        use_activation: whether the vector is normalised to length 1; None leaves it to the model.
        normalize: the older name of `use_activation`.
        truncate_prompt_tokens: take so many tokens of a longer prompt, -1: as many as the model takes; None refuses it.
        truncation_side: where a longer prompt is cut: "right" keeps its beginning.

    Raises:
        InvalidRequestError: a value is of the wrong type, out of range or not supported; `param` names the field.
    """

    dimensions: int | None = None
    use_activation: bool | None = None
    normalize: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    task: str | None = None

    step_tag_id: None = _unsupported()
    returned_token_ids: None = _unsupported([])
    skip_reading_prefix_cache: None = _unsupported(False)
    late_interaction_params: None = _unsupported()
    extra_kwargs: None = _unsupported({})

    def __post_init__(self) -> None:
        if self.dimensions is not None:
            self.dimensions = integer("dimensions", self.dimensions, 1, 2**31 - 1)
        for name in ("use_activation", "normalize"):
            if getattr(self, name) is not None:
                flag(name, getattr(self, name))
        if None not in (self.use_activation, self.normalize) and self.use_activation != self.normalize:
            raise InvalidRequestError("normalize is the older name of use_activation; give one of them.", "normalize")
        if self.truncate_prompt_tokens is not None:
            self.truncate_prompt_tokens = integer("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, 2**31 - 1)
            if self.truncate_prompt_tokens == 0:
                raise InvalidRequestError("truncate_prompt_tokens must be at least 1, or -1 for as many as the model "
                                          "takes, got 0.", "truncate_prompt_tokens")
        if self.truncation_side not in (None, *SIDES):
            raise InvalidRequestError(f"truncation_side must be one of {', '.join(SIDES)}, got "
                                      f"{shown(self.truncation_side)}.", "truncation_side")
        if self.task not in TASKS:
            raise InvalidRequestError(f"task must be 'embed', got {shown(self.task)}.", "task")
        for name, neutral in _UNSUPPORTED.items():
            unsupported(name, getattr(self, name), *neutral)

    @property
    def normalizes(self) -> bool | None:
        return self.normalize if self.use_activation is None else self.use_activation


_UNSUPPORTED = {f.name: f.metadata["neutral"] for f in fields(PoolingParams) if "neutral" in f.metadata}
