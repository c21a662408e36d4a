"""Workloads: what a user asks next. `QUIRE_WORKLOAD` names one, or several with their shares: "chat:4,tools:1"."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from quire.loadtest.users import asked, setting
from quire.loadtest.users.asked import Asked

QUESTIONS = ("What is the capital of France?", "Write three sentences about the sea.",
             "Explain what a hash table is.", "Name five fruits.", "Give me a short poem on winter.")
_CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Kyoto", "Quito")
_TURNS = 6  # of a conversation
_PREFIXES = 4  # that all users share
_PREFIX_WORDS = 600
_LONG_OUTPUT = 32
_MIXED = "chat:4,turns:2,completions:2,prefix:1,schema:1,tools:1"


class Dialogue:
    """A user's own state: its chances, and what was said so far."""

    def __init__(self, seed: object, max_tokens: int, prompt_tokens: int) -> None:
        self.rng = random.Random(str(seed))
        self.max_tokens = max_tokens
        self.prompt_tokens = prompt_tokens  # of `long`
        self.said: list[dict[str, object]] = []
        self.is_open = False  # the next answer belongs to `said`

    def question(self) -> str:
        return self.rng.choice(QUESTIONS)

    def hear(self, answer: str) -> None:
        """What came of the request made last."""
        if self.is_open:
            self.said.append({"role": "assistant", "content": answer})
            self.is_open = False


def _chat(user: Dialogue) -> Asked:
    return asked.chat([asked.user(user.question())], user.max_tokens)


def _turns(user: Dialogue) -> Asked:
    """One more question of a conversation, with all that was said in it; after some, another conversation."""
    if len(user.said) >= 2 * _TURNS or (user.said and user.said[-1]["role"] == "user"):  # whose answer never came
        user.said.clear()
    user.said.append(asked.user(f"{user.question()} {asked.prose(user.rng, 20)}"))
    user.is_open = True
    return asked.chat([*user.said], user.max_tokens, "turns")


def _long(user: Dialogue) -> Asked:
    text = asked.prose(user.rng, user.prompt_tokens)
    return asked.chat([asked.user(f"Sum this up: {text}")], min(user.max_tokens, _LONG_OUTPUT), "long")


def _prefix(user: Dialogue) -> Asked:
    """One of a few long system prompts, and a question."""
    which = user.rng.randrange(_PREFIXES)
    system = {"role": "system", "content": asked.prose(random.Random(which), _PREFIX_WORDS)}
    return asked.chat([system, asked.user(user.question())], user.max_tokens, "prefix")


def _sharegpt(user: Dialogue) -> Asked:
    """Lengths of ShareGPT's conversations, as `quire bench` has them; random tokens."""
    num_prompt, num_output = user.rng.choice(_lengths())
    return asked.completion(user.rng, num_prompt, num_output)


@functools.cache
def _lengths() -> list[list[int]]:
    file = Path(__file__).parents[1] / "workloads.json"
    requests: list[list[int]] = json.loads(file.read_text(encoding="utf-8"))["sharegpt"]["requests"]
    return requests


def _completions(user: Dialogue) -> Asked:
    return asked.completion(user.rng, user.rng.randint(16, 64), user.max_tokens)


KINDS: dict[str, Callable[[Dialogue], Asked]] = {
    "chat": _chat, "turns": _turns, "completions": _completions, "sharegpt": _sharegpt, "long": _long,
    "prefix": _prefix, "schema": lambda user: asked.schema(user.question(), user.max_tokens),
    "tools": lambda user: asked.tools(f"How is the weather in {user.rng.choice(_CITIES)}?", user.max_tokens),
    "images": lambda user: asked.image(user.rng, "What colour is this?", user.max_tokens),
    "embeddings": lambda user: asked.embedding(user.rng, user.rng.randint(5, 200)),
}


def shares(name: str, given: str) -> dict[str, float]:
    """Of each workload; ends the program where the text of the variable `name` says none."""
    found: dict[str, float] = {}
    for part in (_MIXED if given == "mixed" else given).split(","):
        kind, _, share = part.strip().partition(":")
        try:
            found[kind] = float(share or 1)
        except ValueError:
            found[kind] = 0.0
        if kind not in KINDS or not 0 < found[kind] < float("inf"):
            setting.refuse(name, given, f"mixed, or of {', '.join(KINDS)}, with their shares: chat:4,tools:1")
    return found


def asking(user: Dialogue, share_of: dict[str, float]) -> Iterator[Asked]:
    """What the user asks, without end."""
    while True:
        kind = user.rng.choices([*share_of], [*share_of.values()])[0]
        yield KINDS[kind](user)
