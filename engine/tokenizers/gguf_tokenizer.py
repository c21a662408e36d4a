"""Builds a `tokenizers.Tokenizer` from the vocabulary inside a GGUF file.

Three kinds of vocabulary are known: byte-level BPE ("gpt2", whose `pre` names the pre-tokenizer), SentencePiece BPE
("llama", merges follow from the scores) and Gemma's BPE over plain text ("gemma4"). A wrong pre-tokenizer still
round-trips, so nobody would notice it: an unknown one is an error. Called by `quire.engine.tokenizers.tokenizer`.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from quire.engine.errors import ConfigError
from quire.engine.tokenizers.byte_level import RECIPES, byte_level
from quire.engine.tokenizers.sentencepiece_tokenizer import SPACE, bpe, decoder, merges_by_score
from quire.engine.tokenizers.vocabulary import Vocabulary, ids_of

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # tokenizer.ggml.token_type
_ADVICE = ("Pass --tokenizer with the directory of the original model (the one that holds tokenizer.json), or a GGUF "
           "file made by a newer converter.")


def build(metadata: dict[str, Any], path: str) -> Vocabulary:
    """The tokenizer that `metadata` (of the GGUF file at `path`) describes.

    Raises:
        ConfigError: the file holds no vocabulary, or one of a kind that is not known here.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    kind = metadata.get("tokenizer.ggml.model")
    if not tokens or not isinstance(tokens, list):
        raise ConfigError(f"{path}: the file holds no vocabulary. {_ADVICE}")
    if kind == "gpt2":
        rust, add_bos = _byte_level(metadata, tokens, path)
    elif kind == "llama":
        merges, add_bos = _merges_by_score(metadata, tokens, path), True
        rust = _sentencepiece(metadata, tokens, merges, space_prefix=True)
    elif kind == "gemma4":
        merges, add_bos = _merges(metadata, path), True
        rust = _sentencepiece(metadata, tokens, merges, space_prefix=False)
    else:
        raise ConfigError(f"{path}: tokenizer.ggml.model is {kind!r}; 'gpt2', 'llama' and 'gemma4' are known. "
                          f"{_ADVICE}")
    types = metadata.get("tokenizer.ggml.token_type") or []
    control = [text for text, kind in zip(tokens, types) if kind == _CONTROL]
    user_defined = [text for text, kind in zip(tokens, types) if kind == _USER_DEFINED]
    rust.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    rust.add_tokens([AddedToken(text, normalized=False) for text in user_defined])
    special_tokens = _special_tokens(metadata, tokens, path)
    return Vocabulary(
        rust, special_tokens, num_tokens=len(tokens), chat_templates=_chat_templates(metadata),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)))


def _byte_level(metadata: dict[str, Any], tokens: list[str], path: str) -> tuple[RustTokenizer, bool]:
    pre = metadata.get("tokenizer.ggml.pre")
    recipe = RECIPES.get(pre) if isinstance(pre, str) else None
    if recipe is None:
        known = ", ".join(sorted(RECIPES))
        raise ConfigError(f"{path}: tokenizer.ggml.pre is {pre!r}, a pre-tokenizer that is not known here, and a guess "
                          f"would give wrong token ids without a sign of it. {_ADVICE} Known: {known}.")
    return byte_level(ids_of(tokens), _merges(metadata, path), recipe), recipe.add_bos


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], merges: list[tuple[str, str]], *,
                   space_prefix: bool) -> RustTokenizer:
    unknown_id = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    unknown = tokens[unknown_id] if isinstance(unknown_id, int) and 0 <= unknown_id < len(tokens) else None
    rust = RustTokenizer(bpe(tokens, merges, unknown, byte_fallback=True))
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", space_prefix)
    spaces: list[Any] = [normalizers.Replace(" ", SPACE)]
    rust.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), *spaces] if prefixed else spaces)
    if metadata["tokenizer.ggml.model"] == "gemma4":  # its merges never cross a run of line ends
        rust.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    rust.decoder = decoder(strips_space=bool(prefixed))
    return rust


def _merges(metadata: dict[str, Any], path: str) -> list[tuple[str, str]]:
    pairs = []
    for line in metadata.get("tokenizer.ggml.merges") or []:
        # The first part may itself begin with a space, so the separator is looked for from the second character on.
        cut = line.find(" ", 1)
        if cut < 0:
            raise ConfigError(f"{path}: tokenizer.ggml.merges holds {line!r}, which is not two parts.")
        pairs.append((line[:cut], line[cut + 1:]))
    return pairs


def _merges_by_score(metadata: dict[str, Any], tokens: list[str], path: str) -> list[tuple[str, str]]:
    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise ConfigError(f"{path}: {len(scores)} scores for {len(tokens)} tokens. {_ADVICE}")
    types = metadata.get("tokenizer.ggml.token_type") or [0] * len(tokens)
    spelled = [(token, score) for token, score, type in zip(tokens, scores, types)
               if type not in (_UNKNOWN, _CONTROL, _BYTE)]  # no text is spelled with these
    try:
        return merges_by_score(spelled)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}.") from error


def _special_tokens(metadata: dict[str, Any], tokens: list[str], path: str) -> dict[str, str]:
    found = {}
    for name in ("bos", "eos"):
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or not 0 <= value < len(tokens):
            raise ConfigError(f"{path}: {key} is {value!r}; the vocabulary has {len(tokens)} tokens.")
        found[f"{name}_token"] = tokens[value]
    return found


def _chat_templates(metadata: dict[str, Any]) -> dict[str, str]:
    """By name: `tokenizer.chat_template` is the default, `tokenizer.chat_template.NAME` another."""
    key = "tokenizer.chat_template"
    found = {name.removeprefix(key + ".") if name != key else "default": template
             for name, template in metadata.items() if name == key or name.startswith(key + ".")}
    return {name: template for name, template in found.items() if isinstance(template, str)}
