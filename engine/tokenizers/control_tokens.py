"""Keeps control tokens that messages spell from becoming control tokens: only the chat template makes turns.

A tokenizer takes the text of a control token (`<|im_end|>`) for that token, whoever wrote it. `ControlTokens.mark` puts
a marker into every such text of a request's messages before they are rendered, and what was rendered is a `Rendered`,
which remembers the markers. Control tokens without one are the template's; `SeparateEncoder` makes ids of these, and
encodes all between them as plain text. Requests without such texts are not marked, and pass by all of this.

Called by `chat_template` (marks) and `tokenizer` (ids). Refuses to know templates.
"""

from __future__ import annotations

import json
import random
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as RustTokenizer

from quire.engine.errors import InvalidRequestError

# Added tokens that are ordinary text: runs of white space, and tags of HTML that some vocabularies hold. `<s>` is none
# of these: it begins a text.
_ORDINARY = re.compile(r"[\s\u2581]*|</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|"
                       r"sub|sup|code|p|br|ul|ol|li|pre|a|div|span)>")
_MARKERS = range(0xF0000, 0x10FFFE)  # for private use
_MARKER_TRIES = 64


class Rendered(str):
    """The text of a prompt that was rendered from messages which spell control tokens. Equal to its readable text."""

    __slots__ = ("marked", "marker")
    marked: str
    marker: str

    def __new__(cls, marked: str, marker: str) -> Rendered:
        escaped = json.dumps(marker)[1:-1]  # as a template writes it that wants JSON in ASCII
        marked = marked.replace(escaped, marker)
        self = super().__new__(cls, marked.replace(marker, ""))
        self.marked, self.marker = marked, marker
        return self

    def pieces(self, num_chars: int) -> Iterator[Rendered]:
        """The text cut up, so many characters each or some fewer; each piece is rendered too."""
        for start in range(0, len(self.marked), num_chars):
            yield Rendered(self.marked[start:start + num_chars], self.marker)


class ControlTokens:
    """Finds and marks what could become a control token.

    Args:
        tokens: a tokenizer's added tokens that are control tokens.
        normalize: what the tokenizer does to a text before it looks for some of them; None where it looks first.
    """

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str] | None) -> None:
        special = {token.content: token.special for token in tokens}
        self._normalize = normalize
        spellings = set(special)
        if normalize is not None:
            spellings |= {spelled for text in special if (spelled := normalize(text).lstrip("\u2581"))}
        self._any = re.compile(_one_of(spellings))
        # Templates read some of what an assistant said, such as <think>, and the model wrote it as tokens: these stay.
        kept = {text for text, is_special in special.items() if not is_special}
        self._kept = re.compile(_one_of(kept)) if kept else None
        self._first = re.compile(_one_of({text[0] for text in spellings}))
        self._first_unless_kept = re.compile(f"({_one_of(kept)})|{self._first.pattern}") if kept else self._first
        self._lasts = {text[-1] for text in spellings}
        self._beginnings = {text[:i] for text in spellings for i in range(1, len(text))}
        self._ends = {text[i:] for text in spellings for i in range(1, len(text))}
        self._longest = max(map(len, spellings))

    def mark(self, messages: list[dict[str, Any]], others: Any) -> tuple[str, list[dict[str, Any]], Any]:
        """A marker, and messages and `others` with it where they need it; an empty marker where nothing does.

        Raises:
            InvalidRequestError: no character is left to mark with.
        """
        if not (any(self._concerns(value, _is_assistants(message)) for message in messages
                    for key, value in message.items() if key != "role") or self._concerns(others, False)):
            return "", messages, others
        marker = _unused_marker("".join([*_texts(messages), *_texts(others)]))
        marked = [{**self._marked(message, marker, _is_assistants(message)), **_role(message)} for message in messages]
        return marker, marked, self._marked(others, marker, False)

    def _concerns(self, value: Any, is_assistants: bool) -> bool:
        if isinstance(value, str):
            return self._concerns_text(value, is_assistants)
        if isinstance(value, dict):
            return any(self._concerns(key, is_assistants) or self._concerns(item, is_assistants)
                       for key, item in value.items())
        return isinstance(value, (list, tuple)) and any(self._concerns(item, is_assistants) for item in value)

    def _concerns_text(self, text: str, is_assistants: bool) -> bool:
        """Whether `text` spells a control token, or may do so together with what is written beside it."""
        if is_assistants and self._kept is not None:
            text = self._kept.sub("", text)
        return self._spells(text) or (self._normalize is not None and self._spells(self._normalize(text)))

    def _spells(self, text: str) -> bool:
        if self._first.search(text):
            if self._any.search(text):
                return True
            tail = text.rstrip()[-self._longest:]  # templates trim
            if any(tail[i:] in self._beginnings for i in range(len(tail))):
                return True
        return self._ends_one(text.lstrip())

    def _ends_one(self, text: str) -> bool:
        head = text[:self._longest]
        return not self._lasts.isdisjoint(head) and any(head[:i + 1] in self._ends for i in range(len(head)))

    def _marked(self, value: Any, marker: str, is_assistants: bool) -> Any:
        if isinstance(value, str):
            return self._marked_text(value, marker, is_assistants)
        if isinstance(value, dict):
            return {self._marked(key, marker, is_assistants): self._marked(item, marker, is_assistants)
                    for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._marked(item, marker, is_assistants) for item in value]
        return value

    def _marked_text(self, text: str, marker: str, is_assistants: bool) -> str:
        """No control token is whole that has a marker behind its first character."""
        if self._normalize is not None and self._spells(self._normalize(text)):
            return "".join(c if c.isspace() else c + marker for c in text)  # whichever it may begin with
        if is_assistants and self._kept is not None:
            text = self._first_unless_kept.sub(lambda found: found[0] if found[1] else found[0] + marker, text)
        else:
            text = self._first.sub(rf"\g<0>{marker}", text)
        bare = text.lstrip()
        return text[:len(text) - len(bare)] + marker + bare if self._ends_one(bare) else text


class SeparateEncoder:
    """Token ids of a `Rendered`: of the template's control tokens, and of the plain text between them."""

    def __init__(self, rust: RustTokenizer, control: Iterable[AddedToken]) -> None:
        added = rust.get_added_tokens_decoder()
        ids = {token.content: id for id, token in added.items()}
        self._control = {token.content: ids[token.content] for token in control}
        self._control_ids = frozenset(self._control.values())
        # Finds control tokens as the tokenizer does, with all that it knows of their surroundings, and no other tokens.
        self._finder = RustTokenizer(models.WordLevel({"": 0}, unk_token=""))
        # The tokenizer without control tokens. Shares the model, so it costs next to nothing.
        self._plain = RustTokenizer(rust.model)
        for step in ("normalizer", "pre_tokenizer"):
            if getattr(rust, step) is not None:
                setattr(self._plain, step, getattr(rust, step))
        if rust.normalizer is not None:
            self._finder.normalizer = rust.normalizer
        self._finder.add_tokens(list(added.values()))
        self._found = {self._finder.token_to_id(text): id for text, id in ids.items()}
        ordinary = [token for token in added.values() if token.content not in self._control]
        # Some tokenizers treat the beginning of a text differently from what follows a token: this is such a token.
        # Nobody can guess it.
        self._something = secrets.token_hex(16)
        self._plain.add_tokens([*ordinary, AddedToken(self._something, normalized=False)])
        self._ids = {self._plain.token_to_id(token.content): ids[token.content] for token in ordinary}
        around = rust.encode("a", add_special_tokens=True)
        own = [i for i, is_own in enumerate(around.special_tokens_mask) if not is_own]
        self._before, self._after = (around.ids[:own[0]], around.ids[own[-1] + 1:]) if own else (around.ids, [])

    def encode(self, rendered: Rendered, add_special_tokens: bool) -> list[int]:
        marked, marker = rendered.marked, rendered.marker
        parts: list[int | str] = []  # a control token's id, or plain text
        end = 0
        found = self._finder.encode_batch([marked], add_special_tokens=False)[0]
        for id, (start, stop) in zip(map(self._found.get, found.ids), found.offsets):
            is_messages = stop - start == 1 and marked[stop:stop + 1] == marker  # a token of one character
            # White space that a token swallowed may be a token once more.
            if id is not None and (start < end or (id in self._control_ids and not is_messages)):
                parts += [marked[end:start].replace(marker, ""), id]
                end = stop
        parts.append(marked[end:].replace(marker, ""))
        plain = self._plain_ids([(part, i == 0) for i, part in enumerate(parts) if isinstance(part, str)])
        ids = [id for part in parts for id in (next(plain) if isinstance(part, str) else [part])]
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def spells_control(self) -> bool:
        """Whether the model, of itself, makes a control token of its text."""
        return any(not self._control_ids.isdisjoint(ids)
                   for ids in self._encode([(text, False) for text in self._control]))

    def _plain_ids(self, texts: list[tuple[str, bool]]) -> Iterator[list[int]]:
        for (text, is_first), ids in zip(texts, self._encode(texts)):
            yield ids if self._control_ids.isdisjoint(ids) else self._unspelled(text, is_first)

    def _unspelled(self, text: str, is_first: bool) -> list[int]:
        """For models that make a control token of its text: it is cut behind its first character."""
        spelled = re.compile(_one_of(self._control))
        pieces, end = [], 0
        for match in spelled.finditer(text):
            pieces.append(text[end:match.start() + 1])
            end = match.start() + 1
        pieces.append(text[end:])
        encoded = self._encode([(piece, is_first and i == 0) for i, piece in enumerate(pieces)])
        return [id for ids in encoded for id in ids if id not in self._control_ids]

    def _encode(self, texts: list[tuple[str, bool]]) -> list[list[int]]:
        given = [text if is_first else self._something + text for text, is_first in texts]
        encoded = self._plain.encode_batch_fast(given, add_special_tokens=False)
        return [[self._ids.get(id, id) for id in encoding.ids[0 if is_first else 1:]]
                for encoding, (_, is_first) in zip(encoded, texts)]


def control_tokens(rust: RustTokenizer) -> list[AddedToken]:
    """The added tokens that are no ordinary text."""
    return [token for token in rust.get_added_tokens_decoder().values()
            if token.content and (token.special or not _ORDINARY.fullmatch(token.content))]


def _is_assistants(message: dict[str, Any]) -> bool:
    return message.get("role") == "assistant"


def _role(message: dict[str, Any]) -> dict[str, Any]:
    """The role is never marked: templates make `<|user|>` of it."""
    return {"role": message["role"]} if "role" in message else {}


def _texts(value: Any) -> Iterator[str]:
    """All texts within, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _unused_marker(text: str) -> str:
    """Chosen at random, so that nobody can use them up."""
    for code in random.sample(_MARKERS, _MARKER_TRIES):
        marker = chr(code)
        if marker not in text and json.dumps(marker)[1:-1] not in text:
            return marker
    raise InvalidRequestError("messages hold too many characters for private use (U+F0000 to U+10FFFD).", "messages")


def _one_of(texts: Iterable[str]) -> str:
    """A pattern for the longest of these that is there, which takes no more time where they are many."""
    return _branch(sorted(set(texts)))


def _branch(words: list[str]) -> str:
    """`words` are sorted: what the first and the last begin with, all do."""
    first, last = words[0], words[-1]
    length = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
    rests = [word[length:] for word in words]
    branches = [_branch(list(group)) for _, group in groupby(filter(None, rests), key=lambda rest: rest[0])]
    if not branches:
        return re.escape(first)
    return f"{re.escape(first[:length])}(?:{'|'.join(branches)}){'?' if '' in rests else ''}"
