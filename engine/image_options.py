"""What may be set of images: how many a prompt may have, how many pixels of one the model sees, and which hosts they
are fetched from.

Everything else of an image processor is part of how the model was trained. Called by `config` for the server's
settings, by the front end for a request's, and by the process that applies them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from quire.engine.arguments import is_integer, shown
from quire.engine.errors import InvalidRequestError

MOST_IMAGES = 999  # of a prompt, where nobody says
_KINDS = ("image", "video", "audio")
_NAMES = ("min_pixels", "max_pixels", "size")
_EDGES = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
_MOST = 2**31
_HOST = re.compile(r"[\w.-]+|\[?[0-9a-f:.]+\]?")  # a name, or an address


def checked_options(options: Any, field: str = "mm_processor_kwargs") -> dict[str, int]:
    """`min_pixels` and `max_pixels` as far as they are said; transformers' newer name for both is `size`.

    Raises InvalidRequestError.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise InvalidRequestError(f"{field} must be an object such as {{'max_pixels': 1003520}}, got {shown(options)}.",
                                  field)
    found: dict[str, int] = {}
    for name, value in options.items():
        if name not in _NAMES:
            raise InvalidRequestError(f"{field} holds {shown(name)}; it may hold {', '.join(_NAMES)}.", field)
        given = {name: value} if name != "size" else _of_size(value, field)
        for bound, pixels in given.items():
            if not is_integer(pixels) or not 1 <= pixels <= _MOST:
                raise InvalidRequestError(f"{field}.{name} must be a number of pixels, got {shown(pixels)}.", field)
            found[bound] = int(pixels)
    if found.get("min_pixels", 1) > found.get("max_pixels", _MOST):
        raise InvalidRequestError(f"{field} asks for at least {found['min_pixels']} pixels and at most "
                                  f"{found['max_pixels']}.", field)
    return found


def _of_size(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value.keys() <= _EDGES.keys():
        raise InvalidRequestError(f"{field}.size must be an object with shortest_edge and longest_edge, which are "
                                  f"numbers of pixels; got {shown(value)}.", field)
    return {_EDGES[edge]: pixels for edge, pixels in value.items()}


def area_of(options: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """The fewest and the most pixels, by checked `options` where they say so. One bound moves the other before it."""
    least, most = options.get("min_pixels", default[0]), options.get("max_pixels", default[1])
    if "max_pixels" not in options:
        most = max(most, least)
    return min(least, most), most


def checked_limits(limits: Any, field: str = "limit_mm_per_prompt") -> int:
    """How many images a prompt may have, of {"image": 4}, or vLLM's {"image": {"count": 4}}; what it says of videos and
    audio, which nobody takes, is passed over.

    Raises InvalidRequestError.
    """
    if limits is None:
        return MOST_IMAGES
    if not isinstance(limits, Mapping) or not limits.keys() <= set(_KINDS):
        raise InvalidRequestError(f"{field} must be an object such as {{'image': 4}}, of {', '.join(_KINDS)}; got "
                                  f"{shown(limits)}.", field)
    limit = limits.get("image", MOST_IMAGES)
    count = limit.get("count", MOST_IMAGES) if isinstance(limit, Mapping) else limit
    if not is_integer(count) or count < 0:
        raise InvalidRequestError(f"{field}.image must be a number, got {shown(count)}.", field)
    return int(count)


def checked_domains(domains: Collection[str], field: str = "allowed_media_domains") -> frozenset[str]:
    """Hosts' names as URLs have them on the network. Raises InvalidRequestError for what is no host's name."""
    return frozenset(_host(domain, field) for domain in domains)


def _host(domain: str, field: str) -> str:
    try:
        if not _HOST.fullmatch(domain.lower()):
            raise ValueError
        return network_name(domain.strip("[]"))
    except ValueError:  # a UnicodeError is one
        raise InvalidRequestError(f"{field} must hold hosts' names such as 'images.example', without scheme, port, "
                                  f"path or '*'; got {shown(domain)}.", field) from None


def network_name(host: str) -> str:
    """Raises UnicodeError for what cannot be a name."""
    return (host if host.isascii() else host.encode("idna").decode()).rstrip(".").lower()
