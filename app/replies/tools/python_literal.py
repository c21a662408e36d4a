"""Literals of Python, as JSON. Nothing is evaluated: the text is cut into words, and each is written anew."""

from __future__ import annotations

import ast
import json
import re
import warnings

from quire.app.replies.json_text import quoted

_ONE = "|".join(rf"{q}[^{q}\\]*(?:\\[\s\S][^{q}\\]*)*{q}" for q in "\"'")
_THREE = "|".join(rf"{q}(?:[^\\]|\\[\s\S])*?{q}" for q in ('"""', "'''"))
_TEXT = rf"[bBrRuU]?(?:{_THREE}|{_ONE})"
_WORD = re.compile(rf"\s*(?:({_TEXT})|([A-Za-z_]\w*)|([-+]?[\d.][\w.]*(?:(?<=[eE])[-+]\d+)?)|([\[\](){{}},:]))")
_NAMES = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_BRACKETS = {"(": "[", ")": "]"}
_ZEROS_FIRST = re.compile(r"-?0\d")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def as_json(literal: str) -> str | None:
    """None: it is no literal, or one that JSON does not have."""
    written: list[str] = []
    place, end = 0, len(literal.rstrip())
    after_word = False  # whether a text, name or number was the last: another one may not follow it
    while place < end:
        found = _WORD.match(literal, place)
        if found is None:
            return None
        place = found.end()
        text, name, number, sign = found.groups()
        if after_word and sign is None:
            return None
        after_word = sign is None
        if text is not None:
            word = _text(text)
        elif name is not None:
            word = _NAMES.get(name)
        elif number is not None:
            word = _number(number)
        else:
            word = _BRACKETS.get(sign, sign)
            if word in "]}" and written and written[-1] == ",":
                written.pop()
        if word is None:
            return None
        written.append(word)
    whole = "".join(written)
    try:
        json.loads(whole)
    except (ValueError, RecursionError):
        return None
    return whole


def _text(literal: str) -> str | None:
    if literal[0] == '"':
        try:
            json.loads(literal, strict=True)
            return literal
        except ValueError:
            pass
    if "\n" in literal and literal[-3:] not in ('"""', "'''"):
        literal = literal.replace("\n", "\\n")  # which Python does not take there, and models write
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not have
            value = ast.literal_eval(literal)
    except (ValueError, SyntaxError, MemoryError):
        return None
    return quoted(value) if isinstance(value, str) else None


def _number(text: str) -> str | None:
    plain = text.lstrip("+").replace("_", "")
    if _JSON_NUMBER.fullmatch(plain):
        return plain
    if _ZEROS_FIRST.match(plain):  # a code of some kind, such as a postal one, and no number to Python either
        return None
    try:
        value = float(plain)
    except ValueError:
        return None
    return json.dumps(value) if value - value == 0 else None
