"""Bodies of requests of each kind that is asked of a server. Pure."""

from __future__ import annotations

import base64
import random
import struct
import zlib
from dataclasses import dataclass
from typing import Any

CHATS, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
# A token each, for most tokenizers.
WORDS = ("the", "sea", "was", "calm", "and", "a", "small", "boat", "came", "back", "with", "last", "light", "of", "day",
         "while", "people", "on", "shore", "sang", "old", "songs", "about", "wind", "rain", "bread", "salt", "stone")
_SCHEMA = {"type": "object", "additionalProperties": False, "required": ["name", "legs", "can_fly"], "properties": {
    "name": {"type": "string", "maxLength": 24}, "legs": {"type": "integer", "minimum": 0, "maximum": 99},
    "can_fly": {"type": "boolean"}}}
_TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a place.", "parameters": {
        "type": "object", "additionalProperties": False, "required": ["city"],
        "properties": {"city": {"type": "string", "maxLength": 24}}}}}
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Asked:
    """One request. `kind` is what the statistics call it; the path is the name of what it is sent to."""

    kind: str
    path: str
    body: dict[str, Any]
    wants: str = "text"  # or "json", "call", "vector": what a good answer has


def chat(messages: list[dict[str, Any]], max_tokens: int, kind: str = "chat", **fields: Any) -> Asked:
    return Asked(kind, CHATS, {"messages": messages, "max_tokens": max_tokens, **_STREAMED, **fields})


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def completion(rng: random.Random, num_prompt: int, num_output: int) -> Asked:
    """Of exactly so many tokens: ids that every vocabulary has, and no end before."""
    ids = [rng.randrange(1000, 30000) for _ in range(num_prompt)]
    return Asked("completion", COMPLETIONS, {"prompt": ids, "max_tokens": num_output, "ignore_eos": True, **_STREAMED})


def schema(question: str, max_tokens: int) -> Asked:
    form = {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": _SCHEMA}}
    said = chat([user(f"{question} Answer with the animal that you think of.")], max_tokens, "schema",
                response_format=form)
    return Asked(said.kind, said.path, said.body, "json")


def tools(question: str, max_tokens: int) -> Asked:
    said = chat([user(question)], max_tokens, "tools", tools=[_TOOL], tool_choice="required")
    return Asked(said.kind, said.path, said.body, "call")


def image(rng: random.Random, question: str, max_tokens: int) -> Asked:
    url = "data:image/png;base64," + base64.b64encode(png(rng.randbytes(3), 224)).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return chat([user(parts)], max_tokens, "image")


def embedding(rng: random.Random, num_words: int) -> Asked:
    return Asked("embedding", EMBEDDINGS, {"input": prose(rng, num_words)}, "vector")


def prose(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=num_words))


def png(color: bytes, size: int) -> bytes:
    """A square of one colour, three bytes of it."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + color * size) * size
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
