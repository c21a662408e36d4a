"""POST /generate, of vLLM's first server: a prompt and sampling parameters side by side, whole texts back."""

from __future__ import annotations

from typing import Annotated

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.completions import CompletionRequest
from quire.app.schemas.described import about

_NOT_TOLD = ("stream_options", "logprobs", "prompt_logprobs")


class GenerateRequest(CompletionRequest, frozen=True, kw_only=True):
    """One prompt, which every text of the reply repeats."""

    echo: Annotated[bool, about("Without effect: every text begins with the prompt.")] = True

    def check_reply(self, prompts: list[str | list[int]]) -> None:
        """Raises ApiError (400) for what the reply has no place for."""
        if len(prompts) > 1:
            raise ApiError(400, f"/generate takes one prompt, got {len(prompts)}; /v1/completions takes several.",
                           "prompt")
        for name in _NOT_TOLD:
            if getattr(self, name) is not None:
                raise ApiError(400, f"{name} has no place in the replies of /generate; use /v1/completions.", name)
        if not self.echo or self.only_echoes:
            raise ApiError(400, "/generate gives the prompt and at least a token behind it; use /v1/completions for "
                           "either alone.", "max_tokens" if self.echo else "echo")
        self.check_echo(prompts)


class GenerateReply(msgspec.Struct, frozen=True):
    text: list[str]  # of each sample: the prompt, and the output so far
