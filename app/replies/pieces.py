"""What a reply is made of, as it comes: the model's text is cut into these, and each API writes them its own way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A tool is called; the JSON of its arguments follows."""

    index: int  # of the reply's calls
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's JSON: all of a call's add up to one object."""

    index: int
    text: str


Piece = Content | Reasoning | Call | Arguments
