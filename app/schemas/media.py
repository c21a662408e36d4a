"""Images in the messages of a request: each is taken out of its message, where a mark stays that chat templates know.

Three APIs write them in three ways; here they become `SentImage`s. Refuses to know where images are fetched from and
what is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.body import decode_field
from quire.app.schemas.raw import NULL, shown_json, text_of
from quire.app.schemas.unknown import UnknownFields
from quire.engine.frontend.chat_template import IMAGE_PART
from quire.engine.frontend.media.source import SentImage

# Of an image that is sent with detail "low": as many pixels as OpenAI's models see of one.
LOW_DETAIL_PIXELS = 512 * 512
_DETAILS = {"auto": None, "high": None, "original": None, "low": LOW_DETAIL_PIXELS}
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_HARMLESS = frozenset({"type", "uuid", "cache_control", "annotations"})

Part = dict[str, msgspec.Raw]


@dataclass
class SentImages:
    """Those of one request, in the order in which its prompt has them. `taken`: the model sees images; `options` are
    those of its image processor; `salt` is that of the request's prefixes."""

    taken: bool
    unknown: UnknownFields
    options: Mapping[str, int] = field(default_factory=dict)
    salt: str = ""
    images: list[SentImage] = field(default_factory=list)

    @property
    def kinds(self) -> str:
        return "text and images" if self.taken else "text only"

    def take_image_url(self, part: Part, where: str) -> dict[str, Any]:
        """A part of chat's: {"type": "image_url", "image_url": {"url", "detail"}}, or a URL for the object. Returns the
        mark; raises ApiError."""
        sent, detail = part.get("image_url"), None
        url = text_of(sent, f"{where}.image_url")
        if url is None and sent is not None and bytes(memoryview(sent)[:1]) == b"{":
            fields = decode_field(f"{where}.image_url", _OBJECT, sent)
            url, detail = text_of(fields.get("url"), f"{where}.image_url.url"), fields.get("detail")
            self._meet_unknown(fields, f"{where}.image_url", ("url", "detail"))
        if url is None:
            raise ApiError(400, f"{where}.image_url must be a URL, or an object with 'url'.", f"{where}.image_url")
        self._meet_unknown(part, where, ("type", "image_url"))
        return self._take(where, url, _pixels_of(detail, f"{where}.image_url.detail"))

    def take_input_image(self, part: Part, where: str) -> dict[str, Any]:
        """A part of Responses': {"type": "input_image", "image_url": URL, "detail"}."""
        if part.get("file_id", NULL) != NULL:
            raise ApiError(400, f"{where}.file_id: this server stores no files; send image_url.", f"{where}.file_id")
        url = text_of(part.get("image_url"), f"{where}.image_url")
        if url is None:
            raise ApiError(400, f"{where}.image_url must be a URL, got {shown_json(part.get('image_url'))}.",
                           f"{where}.image_url")
        self._meet_unknown(part, where, ("type", "image_url", "detail", "file_id"))
        return self._take(where, url, _pixels_of(part.get("detail"), f"{where}.detail"))

    def take_source(self, source: msgspec.Raw, where: str) -> dict[str, Any]:
        """The source of a block of Anthropic's: {"type": "base64", "media_type", "data"}, or {"type": "url", "url"}."""
        fields = decode_field(f"{where}.source", _OBJECT, source)
        kind = text_of(fields.get("type"), f"{where}.source.type")
        names = {"base64": ("media_type", "data"), "url": ("url",)}.get(kind or "")
        if names is None:
            raise ApiError(400, f"{where}.source.type must be 'base64' or 'url', got {shown_json(fields.get('type'))}.",
                           f"{where}.source.type")
        values = [text_of(fields.get(name), f"{where}.source.{name}") for name in names]
        for name, value in zip(names, values):
            if value is None:
                raise ApiError(400, f"{where}.source.{name} must be text.", f"{where}.source.{name}")
        self._meet_unknown(fields, f"{where}.source", ("type", *names))
        if kind == "url":
            return self._take(where, str(values[0]), None)
        media_type, data = values
        if media_type not in _IMAGE_TYPES:
            raise ApiError(400, f"{where}.source.media_type must be one of {', '.join(_IMAGE_TYPES)}; got "
                           f"{shown_json(fields['media_type'])}.", f"{where}.source.media_type")
        return self._take(where, f"data:{media_type};base64,{data}", None)

    def check_taken(self, where: str, kind: str, noun: str = "parts") -> None:
        """Raises ApiError where the model takes no images."""
        if not self.taken:
            raise ApiError(400, f"{where}: this model takes text only; {noun} of type {kind!r} are not supported.",
                           where)

    def _take(self, where: str, url: str, most_pixels: int | None) -> dict[str, Any]:
        self.images.append(SentImage(where, url, most_pixels))
        return IMAGE_PART

    def _meet_unknown(self, sent: Part, where: str, known: tuple[str, ...]) -> None:
        for name, value in sent.items():
            if name not in known and name not in _HARMLESS and value != NULL:
                self.unknown.meet(name, f"{where}.{name}", known)


def is_image(part: Part, kind: msgspec.Raw) -> bool:
    """Whether the part is of this kind: one that may be long without being a long text."""
    return "image_url" in part and part.get("type", kind) == kind


def _pixels_of(detail: msgspec.Raw | None, where: str) -> int | None:
    if detail is None or detail == NULL:
        return None
    word = text_of(detail, where)
    if word not in _DETAILS:
        raise ApiError(400, f"{where} must be one of {', '.join(_DETAILS)}; got {shown_json(detail)}.", where)
    return _DETAILS[word]
