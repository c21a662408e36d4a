"""What lies beside a tokenizer's vocabulary in a Hugging Face directory: tokenizer_config.json,
special_tokens_map.json, added_tokens.json and the chat templates. Refuses to know the vocabulary; called by
`quire.engine.tokenizers.tokenizer`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    values: dict[str, Any]  # tokenizer_config.json, and special_tokens_map.json where it says nothing
    special_tokens: dict[str, str]  # "bos_token" and its like to texts
    more_special_tokens: list[str]
    added_tokens: list[tuple[int, dict[str, Any]]]  # ids and what AddedToken takes, in order
    older_added_tokens: list[tuple[int, dict[str, Any]]]  # of added_tokens.json, which came before these
    chat_templates: dict[str, str]  # by name

    def adds(self, name: str, default: bool) -> bool:
        """Whether the token `name` ("bos" or "eos") is put around a text."""
        stated = self.values.get(f"add_{name}_token")
        return default if stated is None else bool(stated)


def read_config(directory: Path) -> TokenizerConfig:
    """What `directory` holds; files that are not there say nothing.

    Raises:
        ConfigError: a file is malformed.
    """
    values = {**_json(directory / "special_tokens_map.json"), **_json(directory / "tokenizer_config.json")}
    older = [(id, {"content": text}) for text, id in _json(directory / "added_tokens.json").items()]
    extra = values.get("additional_special_tokens") or values.get("extra_special_tokens") or []
    return TokenizerConfig(
        values,
        special_tokens={name: text for name in _NAMED_TOKENS if (text := _content(directory, name, values.get(name)))},
        more_special_tokens=[text for token in (extra if isinstance(extra, list) else [])
                             if (text := _content(directory, "additional_special_tokens", token))],
        added_tokens=_added_tokens(directory / "tokenizer_config.json", values.get("added_tokens_decoder") or {}),
        older_added_tokens=_added_tokens(directory / "added_tokens.json", older),
        chat_templates=_chat_templates(directory, values.get("chat_template")))


def _added_tokens(path: Path, stated: Any) -> list[tuple[int, dict[str, Any]]]:
    """`stated`: entries by id, in a dictionary or as pairs."""
    try:
        tokens = [(int(id), {name: entry[name] for name in _TOKEN_FIELDS if name in entry})
                  for id, entry in dict(stated).items()]
        if not all(isinstance(entry["content"], str) for _, entry in tokens):
            raise ValueError("a token's content is no text")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"{path}: the added tokens cannot be read: {type(error).__name__}: {error}") from error
    return sorted(tokens, key=lambda token: token[0])


def _chat_templates(directory: Path, stated: Any) -> dict[str, str]:
    """Files of their own come before tokenizer_config.json's entry, as in transformers."""
    entries = [{"name": "default", "template": stated}] if isinstance(stated, str) else stated or []
    try:
        found = {entry["name"]: entry["template"] for entry in entries}
        if not all(isinstance(text, str) for text in (*found, *found.values())):
            raise ValueError("a name or a template is no text")
    except (ValueError, TypeError, LookupError) as error:
        raise ConfigError(f"{directory / 'tokenizer_config.json'}: chat_template must be a template, or a list of "
                          f"objects with name and template: {type(error).__name__}: {error}") from error
    for file in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        found[file.stem] = _text(file)
    alone = _json(directory / "chat_template.json").get("chat_template")
    if isinstance(alone, str):
        found["default"] = alone
    if (directory / "chat_template.jinja").is_file():
        found["default"] = _text(directory / "chat_template.jinja")
    return found


def _content(directory: Path, name: str, token: Any) -> str | None:
    """A special token is written as its text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    if not (text is None or text is False or isinstance(text, str)):
        raise ConfigError(f"{directory}: tokenizer_config.json or special_tokens_map.json: {name} must be a text or an "
                          f"object with its content, is {shown(token)}")
    return text or None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object.")
    return value
