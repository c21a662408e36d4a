"""What replies tell of the tokens of a prompt, in vLLM's shape."""

from __future__ import annotations

from typing import Annotated

import msgspec

from quire.app.schemas.described import json_of


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int
    decoded_token: str


# Of each token an object: id to a PromptLogprob; null of the first, which nothing comes before.
ToldOfPrompt = list[Annotated[msgspec.Raw, json_of(dict[str, PromptLogprob] | None)]]
