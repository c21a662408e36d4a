"""One choice of a reply while it comes, and as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from quire.app.replies.parser import ReplyParser
from quire.app.replies.pieces import Arguments, Call, Content, Piece, Reasoning
from quire.app.schemas.tools import ToolChoice
from quire.engine.frontend.generation import SampleUpdate


class Choice:
    """`parser` None: the text is all that there is."""

    def __init__(self, parser: ReplyParser | None, asked: ToolChoice) -> None:
        self._parser = parser
        self._names_call = bool(asked.name)
        self._several = asked.several
        self.num_reasoning_tokens = 0

    @property
    def is_plain(self) -> bool:
        return self._parser is None

    def push(self, update: SampleUpdate) -> list[Piece]:
        """What is new. An end by calls becomes the update's finish reason."""
        if (parser := self._parser) is None:
            return [Content(update.text)] if update.text else []
        if parser.is_thinking:
            self.num_reasoning_tokens += len(update.token_ids)
        pieces = parser.push(update.text)
        if update.finish_reason is not None:
            pieces += parser.flush()
            # OpenAI's: where the request named the tool, that it was called tells nothing new.
            if update.finish_reason == "stop" and parser.num_calls and not self._names_call:
                update.finish_reason = "tool_calls"
        return pieces if self._several else [piece for piece in pieces if not _is_of_another_call(piece)]


def _is_of_another_call(piece: Piece) -> bool:
    """Than the first: where nothing keeps a model from calling twice, who asked for one call gets the first."""
    return isinstance(piece, (Call, Arguments)) and piece.index > 0


@dataclass(slots=True)
class Whole:
    """All of a choice's pieces."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[Call, str]] = field(default_factory=list)  # each with the JSON of its arguments

    @staticmethod
    def of(pieces: Iterable[Piece]) -> Whole:
        content, reasoning = [], []
        calls: list[tuple[Call, list[str]]] = []
        for piece in pieces:
            match piece:
                case Content(text):
                    content.append(text)
                case Reasoning(text):
                    reasoning.append(text)
                case Call():
                    calls.append((piece, []))
                case Arguments(index, text):
                    calls[index][1].append(text)
        return Whole("".join(content), "".join(reasoning), [(call, "".join(parts)) for call, parts in calls])
