"""What a caller may ask of the form of an output: the fields, defaults and refusals of vLLM's StructuredOutputsParams.

Public, as `SamplingParams` is. Refuses to know how a form is enforced: `quire.engine.grammar` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from quire.engine.arguments import flag, listed, shown
from quire.engine.errors import InvalidRequestError

MAX_CHARACTERS = 256 * 2**10  # of a schema, a regular expression or a grammar
MAX_CHOICES = 1000
MAX_DEPTH = 40  # levels of a schema
_FORMS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


@dataclass(slots=True, kw_only=True)
class StructuredOutputsParams:
    """The form of an output: exactly one of `json` (a JSON schema), `regex`, `choice`, `grammar` (Lark or GBNF),
    `json_object` and `structural_tag`, and how JSON is written.

    Raises:
        InvalidRequestError: none or several of them, or one of a wrong type; `param` names the field.
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    name: str = field(default="structured_outputs", repr=False, compare=False)  # of the field that asked for it

    def __post_init__(self) -> None:
        if callable(of_class := getattr(self.json, "model_json_schema", None)):  # a class of pydantic's
            self.json = of_class()
        given = [name for name in _FORMS if getattr(self, name) not in (None, False) or
                 (name == "json" and self.json is False)]
        if len(given) != 1:
            what = ", ".join(given) or "none of them" + (" (json_object: false asks for nothing)" if
                                                         self.json_object is False else "")
            raise self._wrong(f"must have exactly one of {', '.join(_FORMS)}, got {what}")
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            flag(name, getattr(self, name))
        for name in ("regex", "grammar", "whitespace_pattern"):
            self._check_text(name, getattr(self, name))
        if self.json_object is not None:
            flag("json_object", self.json_object)
        if self.choice is not None:
            self._check_choice()
        self.json = self._schema("json", self.json, (dict, bool))
        self.structural_tag = self._schema("structural_tag", self.structural_tag, (dict,))

    def _check_text(self, name: str, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, str):
            raise self._wrong(f"{name} must be text, got {shown(value)}")
        if not value.strip() and name != "regex":
            raise self._wrong(f"{name} is empty")
        if "\0" in value:
            raise self._wrong(f"{name} may not hold the character NUL")
        self._check_length(name, len(value))

    def _check_choice(self) -> None:
        self.choice = listed("choice", self.choice, "a list of strings")
        if not self.choice:
            raise self._wrong("choice is empty, so that nothing could be chosen")
        if len(self.choice) > MAX_CHOICES:
            raise self._wrong(f"choice may hold at most {MAX_CHOICES} strings, got {len(self.choice)}")
        for text in self.choice:
            if not isinstance(text, str) or not text:
                raise self._wrong(f"choice must hold strings that are not empty, got {shown(text)}")
        self._check_length("choice", sum(map(len, self.choice)))

    def _schema(self, name: str, value: Any, kinds: tuple[type, ...]) -> Any:
        """As Python's objects; callers may give JSON."""
        if value is None:
            return None
        if isinstance(value, str):
            self._check_length(name, len(value))
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise self._wrong(f"{name} is no JSON: {error}") from None
        if not isinstance(value, kinds):
            raise self._wrong(f"{name} must be a JSON object, got {shown(value)}")
        if _depth(value) > MAX_DEPTH:
            raise self._wrong(f"{name} has more than {MAX_DEPTH} levels")
        try:
            length = len(json.dumps(value, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise self._wrong(f"{name} cannot be written as JSON: {error}") from None
        self._check_length(name, length)
        return value

    def _check_length(self, name: str, length: int) -> None:
        if length > MAX_CHARACTERS:
            raise self._wrong(f"{name} may have at most {MAX_CHARACTERS} characters, got {length}")

    def _wrong(self, what: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self.name}: {what}.", self.name)


def _depth(value: Any) -> int:
    """How many lists and objects lie within each other, or more than MAX_DEPTH."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        level = [inner for item in level if isinstance(item, (dict, list))
                 for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth


class GuidedDecodingParams(StructuredOutputsParams):
    """vLLM's older name of it."""


FIELDS = tuple(f.name for f in fields(StructuredOutputsParams) if f.name != "name")
