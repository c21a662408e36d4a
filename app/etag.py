"""A page that stays the same while the server runs, with an ETag: who has it is told so and gets no second copy."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response


class Page(NamedTuple):
    body: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> Page:
        return cls(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    def reply(self, request: Request, headers: dict[str, str]) -> Response:
        """To `request`: the page, or 304 to a client that has it."""
        headers = headers | {"etag": self.etag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
        known = [tag.strip().removeprefix("W/") for value in request.headers.getlist("if-none-match")
                 for tag in value.split(",")]
        if self.etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.media_type)
