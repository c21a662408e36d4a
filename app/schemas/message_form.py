"""A conversation's messages as types, for the OpenAPI document. They are read by hand, message by message (`chat`),
since what nobody reads is not decoded."""

from __future__ import annotations

from typing import Literal

import msgspec


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ImageURL(msgspec.Struct):
    """An https:, http: or data: URL; with detail "low", the model sees at most 512 * 512 pixels of it."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    """Where the model takes images."""

    image_url: ImageURL | str


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class SystemMessage(msgspec.Struct, tag_field="role", tag="system"):
    content: str | list[TextPart]
    name: str | None = None


class DeveloperMessage(msgspec.Struct, tag_field="role", tag="developer"):
    """The same as a system message."""

    content: str | list[TextPart]
    name: str | None = None


class UserMessage(msgspec.Struct, tag_field="role", tag="user"):
    content: str | list[TextPart | ImagePart]
    name: str | None = None


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    refusal: str | None = None


ConversationMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage
