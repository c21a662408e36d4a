"""The fields that ask for the form of an output: vLLM's structured_outputs, and guided_*, its older names; and how
OpenAI's own field is read, which has another name in each API.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.described import about, json_of
from quire.app.schemas.response_format import StructuredOutputs
from quire.engine.arguments import shown
from quire.engine.structured_outputs import FIELDS, StructuredOutputsParams

_TYPES = ("text", "json_object", "json_schema", "structural_tag")


class FormFields(msgspec.Struct, frozen=True, kw_only=True):
    """None everywhere means "not given"."""

    structured_outputs: Annotated[
        Annotated[dict[str, Any], json_of(StructuredOutputs)] | None,
        about("The form of the output: one of `json`, `regex`, `choice`, `grammar`, `json_object`, `structural_tag`."),
    ] = None
    guided_json: Annotated[str | dict[str, Any] | bool | None, about("Older name of `structured_outputs.json`.")] = None
    guided_regex: Annotated[str | None, about("Older name of `structured_outputs.regex`.")] = None
    guided_choice: Annotated[list[str] | None, about("Older name of `structured_outputs.choice`.")] = None
    guided_grammar: Annotated[str | None, about("Older name of `structured_outputs.grammar`.")] = None
    guided_whitespace_pattern: Annotated[
        str | None, about("Older name of `structured_outputs.whitespace_pattern`.")] = None
    guided_decoding_backend: Annotated[str | None, about("Without effect: there is one way here.")] = None
    structural_tag: Annotated[
        str | dict[str, Any] | None, about("Free text in which some parts have a form, as vLLM has it.")] = None

    @property
    def form(self) -> StructuredOutputsParams | None:
        """Raises ApiError for fields that contradict each other, InvalidRequestError for a form that is none."""
        asked = [form for form in (self._response_format(), self._structured_outputs(), self._guided())
                 if form is not None]
        if len(asked) > 1:
            raise ApiError(400, f"{' and '.join(form.name for form in asked)} both ask for a form; send one of them.",
                           asked[1].name)
        return asked[0] if asked else None

    def _response_format(self) -> StructuredOutputsParams | None:
        """As the API itself has it, in a field that each has its own way."""
        return None

    def _structured_outputs(self) -> StructuredOutputsParams | None:
        wanted = self.structured_outputs
        if wanted is None:
            return None
        unknown = wanted.keys() - FIELDS
        if unknown:
            raise ApiError(400, f"structured_outputs has no {', '.join(map(shown, sorted(unknown)))}; it has "
                           f"{', '.join(FIELDS)}.", "structured_outputs")
        return StructuredOutputsParams(**wanted, name="structured_outputs")

    def _guided(self) -> StructuredOutputsParams | None:
        given: dict[str, Any] = {"json": self.guided_json, "regex": self.guided_regex, "choice": self.guided_choice,
                 "grammar": self.guided_grammar, "structural_tag": self.structural_tag}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            return None
        name = next(iter(given))
        return StructuredOutputsParams(**given, whitespace_pattern=self.guided_whitespace_pattern,
                                       name=name if name == "structural_tag" else f"guided_{name}")


def stated_form(name: str, wanted: dict[str, Any] | None, *, within: str = "") -> StructuredOutputsParams | None:
    """Of OpenAI's object in the field `name`, whose schema lies in its member `within`, or in itself.

    Raises ApiError, InvalidRequestError.
    """
    if wanted is None or wanted.get("type") == "text":
        return None
    kind = wanted.get("type")
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True, name=name)
    if kind == "structural_tag":
        return StructuredOutputsParams(structural_tag=wanted, name=name)
    if kind != "json_schema":
        raise ApiError(400, f"{name}.type must be one of {', '.join(_TYPES)}; got {shown(kind)}.", name)
    stated = wanted.get(within) if within else wanted
    schema = stated.get("schema") if isinstance(stated, dict) else None
    if not isinstance(schema, (dict, bool)):
        where = f"{name}.{within}.schema" if within else f"{name}.schema"
        got = schema if isinstance(stated, dict) else stated
        raise ApiError(400, f"{where} must be a JSON schema, got {shown(got)}.", name)
    return StructuredOutputsParams(json=schema, name=name)
