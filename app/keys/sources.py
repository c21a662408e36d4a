"""Where keys come from besides flags: vLLM's variable, a file as Docker hands secrets over, systemd's credentials.

Knows where they are, not what is in them; called by app/sources.py when it reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Source = tuple[str, Any, str]  # option, value, where it came from


def key_sources(environment: Mapping[str, str], problems: list[str]) -> Iterator[Source]:
    """Weakest first. What is wrong is added to `problems`."""
    credentials = environment.get("CREDENTIALS_DIRECTORY")
    key_file = environment.get("VLLM_API_KEY_FILE")
    if credentials and os.path.exists(f"{credentials}/quire-keys"):
        yield "api_key_file", f"{credentials}/quire-keys", "systemd credential quire-keys"
    if credentials and os.path.exists(f"{credentials}/VLLM_API_KEY"):
        yield from _keys_in(f"{credentials}/VLLM_API_KEY", "systemd credential VLLM_API_KEY", problems)
    if key_file is not None:
        yield from _keys_in(key_file, "VLLM_API_KEY_FILE", problems)
    keys = environment.get("VLLM_API_KEY")
    if keys is not None:
        if key_file is not None:
            problems.append("VLLM_API_KEY_FILE: VLLM_API_KEY is set too; give one of them")
        yield "api_key", keys.split(","), "VLLM_API_KEY"


def _keys_in(path: str, source: str, problems: list[str]) -> Iterator[Source]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{source}: {path} cannot be read: {getattr(error, 'strerror', 'it is not UTF-8')}")
        return
    yield "api_key", re.split(r"\s*[,\n]\s*", text.removesuffix("\n")), source
