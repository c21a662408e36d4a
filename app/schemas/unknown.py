"""Fields of a request that this server does not have.

They are refused, with the name that was perhaps meant: a field that is mistyped, or that another server knows, would
change the reply if it were heeded. What clients note for themselves would not: it is passed over, and named in the
reply's header `Warning`, and so is everything with `--unknown-fields warn`. Used by the schemas; the header is
written by `quire.app.middleware.request_log`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from quire.app.errors import ApiError

# What clients and the gateways before them (Open WebUI, LiteLLM, clients of Ollama) send along.
OF_CLIENTS = frozenset({
    "id", "chat_id", "conversation_id", "message_id", "parent_id", "session_id", "thread_id", "trace_id", "tags",
    "keep_alive", "verbosity", "background_tasks", "features", "filter_ids", "model_item", "variables", "caching",
    "cache", "custom_llm_provider", "drop_params", "extra_headers", "litellm_call_id", "litellm_metadata",
    "litellm_session_id", "litellm_trace_id", "max_retries", "num_retries", "request_timeout", "timeout",
    # How Anthropic's servers are to keep house: what to bill, where to run, when to shorten a context.
    "billing_policy", "compaction", "diagnostics", "fallback_credit_token", "fallbacks",
    "inference_geo", "speed", "user_profile_id", "workspace_id",
})
OF_CLIENTS_IN_MESSAGES = frozenset({
    "id", "chat_id", "parent_id", "parentId", "childrenIds", "created", "created_at", "createdAt", "timestamp", "date",
    "model", "models", "modelName", "done", "status", "usage", "info", "metadata", "cache_control", "thinking_blocks",
    "reasoning_details", "provider_specific_fields", "additional_kwargs", "response_metadata", "usage_metadata",
})

# Fields that have another name here, or belong to another path.
_MEANT = {**dict.fromkeys(("max_completion_tokens", "num_predict", "max_output_tokens", "max_new_tokens"),
                          ("max_output_tokens", "max_tokens")),
          "repeat_penalty": ("repetition_penalty",), "stop_sequences": ("stop",), "beam_width": ("best_of",),
          "num_beams": ("best_of",)}
_ELSEWHERE = {
    "prompt": "prompt is a field of /v1/completions; /v1/chat/completions takes messages, /v1/responses takes input",
    "messages": "messages is a field of /v1/chat/completions; /v1/completions takes prompt, /v1/responses takes input",
    "input": "input is a field of /v1/responses and /v1/embeddings; send messages to /v1/chat/completions, or prompt "
             "to /v1/completions",
    "enable_thinking": "enable_thinking is the chat template's: send it within chat_template_kwargs",
    "batch_invariant": "batch_invariant is for a whole server: start it with --batch-invariant",
    "extra_body": "extra_body is an argument of OpenAI's SDK, which puts what is in it into the body itself: send its "
                  "fields beside the others",
}
_MOST_NAMED = 16
_MOST_KEPT = 64  # a body may have as many as it likes
_INDEX = re.compile(r"\[\d+\]")
_UNSAFE = re.compile(r"[^\w.\[\]-]", re.ASCII)  # in a header


class OfOthers:
    """A field of other APIs, which one's class has in a table `OF_OTHERS`: what to do `instead`. `neutral` is the value
    that asks for nothing, if one does."""

    __slots__ = ("instead", "neutral")

    def __init__(self, instead: str, *neutral: Any) -> None:
        self.instead, self.neutral = instead, neutral


class UnknownFields:
    """Of one request. `ignored` gets the names of what is passed over, each once."""

    def __init__(self, ignored: dict[str, None] | None = None, *, take_all: bool = False) -> None:
        self._ignored = {} if ignored is None else ignored
        self._take_all = take_all

    def meet(self, name: str, path: str, known: Iterable[str], of_clients: frozenset[str] = frozenset(),
             is_empty: bool = False) -> None:
        """A field `name`, which stands at `path` beside those that are `known`; one that `is_empty` asks for nothing.

        Raises ApiError (400) that names it.
        """
        if not (self._take_all or name in of_clients or (is_empty and name not in _ELSEWHERE)):
            raise ApiError(400, _refusal(name[:100], path[:100], known), path[:100])
        if len(self._ignored) < _MOST_KEPT:
            self._ignored[_INDEX.sub("[]", path[:100])] = None  # once, however many messages have it


def _refusal(name: str, path: str, known: Iterable[str]) -> str:
    if name == path and (belongs := elsewhere(name)):
        return belongs
    known = list(known)
    meant = next((field for field in _MEANT.get(name, ()) if field in known),
                 next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.75)), None))
    return f"There is no request field {path!r}" + (f"; did you mean {meant!r}?" if meant else ".")


def elsewhere(name: str) -> str:
    """Where a field of the body belongs; empty for one that belongs nowhere."""
    return f"There is no request field {name!r} here: {_ELSEWHERE[name]}." if name in _ELSEWHERE else ""


def warning(ignored: Iterable[str]) -> str:
    """The header's value."""
    names = [_UNSAFE.sub("?", name) for name in ignored]
    rest = [f"and {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return f'199 quire "fields ignored: {", ".join(names[:_MOST_NAMED] + rest)}"'
