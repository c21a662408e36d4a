"""A key: its name, the digest of its secret, and what it may do.

A named key's secret is 256 random bits, which nobody finds by trying: its plain SHA-256 is as good a proof as a slow
password hash, and costs a microsecond at each request instead of a tenth of a second. Knows no file and no request.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timezone
from typing import Annotated

import msgspec

from quire.engine.messages import KeyLimits

SHORTEST_KEY = 16  # characters; fewer may be found by trying
_MAX_COUNT = 10**12

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Time = Annotated[datetime, msgspec.Meta(tz=True)]
Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]


class Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields are those of an entry of the key file. A count of 0 is no limit."""

    name: Name
    sha256: Digest
    created: Time
    not_after: Time | None = None
    models: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None  # None: every one
    # A request runs with this priority, or a later one that it asks for; lower runs first. None: as it asks.
    priority: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)] | None = 0
    weight: Annotated[float, msgspec.Meta(ge=0.001, le=1000.0)] = 1.0
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    max_concurrent: Count = 0
    admin: bool = False
    prefix_group: Name | None = None  # keys of one group find each other's cached prefixes

    @property
    def limits(self) -> KeyLimits:
        """What the engine's door is told of it."""
        return KeyLimits(self.name, self.requests_per_minute, self.tokens_per_minute, self.max_concurrent, self.weight)

    @property
    def expired(self) -> bool:
        return self.not_after is not None and self.not_after <= datetime.now(timezone.utc)

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models

    def salted(self, cache_salt: str) -> str:
        """Whose prefixes it may find. Without a name there are no keys to keep apart."""
        if not self.name:
            return cache_salt
        whose = f"key:{self.name}" if self.prefix_group is None else f"group:{self.prefix_group}"
        return f"{whose}\n{cache_salt}"

    def effective_priority(self, asked: int) -> int:
        return asked if self.priority is None else max(asked, self.priority)


NEVER = datetime.fromtimestamp(0, timezone.utc)  # when the keys were made of which nobody says when
ANYONE = Key(name="", sha256="", created=NEVER, priority=None)  # no keys are set


def plain_key(digest: str) -> Key:
    """The operator's own, from the environment or a flag: without limits, with every right."""
    return Key(name=f"key-{digest[:8]}", sha256=digest, created=NEVER, priority=None, admin=True)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def new_secret() -> str:
    return f"quire-{secrets.token_urlsafe(32)}"
