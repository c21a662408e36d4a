"""Builds a `tokenizers.Tokenizer` that cuts texts as SentencePiece does, from its `tokenizer.model`.

Token ids are those of the sentencepiece package. What is added is transformers' way: control tokens are found in a
text, and the text behind one begins anew, with a space of its own, unless tokenizer_config.json says `"legacy": false`.
Differences remain at the edges. A text that is nothing but a user-defined piece gets no space before it, and without
`legacy` no such piece holds that space. Of several ways to cut a text that unigram scores hold equally good another one
may be chosen. Rules that replace characters (NFKC) are applied by the `tokenizers` package, which differs where several
marks stand on a character. Called by `quire.engine.tokenizers.tokenizer`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from quire.engine.errors import ConfigError
from quire.engine.tokenizers.sentencepiece_model import (
    BPE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    read_model,
)
from quire.engine.tokenizers.vocabulary import Vocabulary, ids_of, merges_in_order

SPACE = "\u2581"  # what SentencePiece writes for a space
_EXTRA_SPACES = rf"\A +|[ {SPACE}]+\z|(?<= ) +"
_BYTE_TOKEN = "<(?=0x[0-9A-F]{2}>)"  # the beginning of one


def build(path: Path, config: dict[str, Any]) -> Vocabulary:
    """The tokenizer in the file at `path`; `config` is tokenizer_config.json.

    Raises:
        ConfigError: the file is malformed, or cuts texts in a way that is not known here.
    """
    model = read_model(path)
    _refuse_unknown(model, path)
    unknown_id = model.types.index(UNKNOWN)
    cuts: list[Any] = []
    if model.model_type == BPE:
        merges = merges_by_score([(text, score) for text, score, type in zip(model.texts, model.scores, model.types)
                                  if type == NORMAL])  # user-defined pieces are joined with nothing
        rust = RustTokenizer(bpe(model.texts, merges, model.texts[unknown_id], model.byte_fallback))
    else:
        rust = RustTokenizer(models.Unigram(list(zip(model.texts, model.scores)), unknown_id, model.byte_fallback))
        if model.byte_fallback:  # no text is spelled with their pieces
            cuts.append(pre_tokenizers.Split(Regex(_BYTE_TOKEN), "isolated"))
    prefixed = model.add_dummy_prefix and config.get("add_prefix_space") is not False
    everywhere = config.get("legacy") is not False
    user_defined = [text for text, type in zip(model.texts, model.types) if type == USER_DEFINED]
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(_EXTRA_SPACES), ""))
    steps.append(normalizers.Replace(" ", SPACE))
    if prefixed and everywhere:
        steps.append(_prefix(user_defined))
    rust.normalizer = normalizer = normalizers.Sequence(steps)
    if prefixed and not everywhere:
        # The space is put in by one step and spelled by the next, as the first would put none where there is one.
        cuts = [pre_tokenizers.Metaspace(" ", "first", split=False),
                pre_tokenizers.Metaspace(SPACE, "never", split=False), *cuts]
    if cuts:
        rust.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    rust.decoder = decoder(strips_space=prefixed or model.remove_extra_whitespaces)
    # Found in the normalized text, so that runs of spaces are; unless the rules would make something else of them.
    rust.add_tokens([AddedToken(text, normalized=normalizer.normalize_str(text) == text) for text in user_defined])
    rust.add_special_tokens([AddedToken(text, normalized=False, special=True)
                             for text, type in zip(model.texts, model.types) if type in (CONTROL, UNKNOWN)])
    types = dict(zip(model.texts, model.types))
    special = {name: text for name, text in model.special_pieces.items() if types.get(text) in (CONTROL, UNKNOWN)}
    return Vocabulary(rust, special, add_bos=True)


def merges_by_score(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose joint piece scores best."""
    ordered = sorted(pieces, key=lambda piece: -piece[1])  # stable: equal scores keep the order of the file
    return merges_in_order([text for text, _ in ordered])


def bpe(tokens: list[str], merges: list[tuple[str, str]], unknown: str | None, byte_fallback: bool) -> models.BPE:
    """A BPE over characters; those that are no tokens are spelled by their bytes, or are `unknown`."""
    return models.BPE(ids_of(tokens), merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)


def decoder(*, strips_space: bool) -> decoders.Decoder:
    """`strips_space`: the first space of a text is the tokenizer's own."""
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strips_space:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _refuse_unknown(model: SentencePieceModel, path: Path) -> None:
    what = None
    if model.model_type not in (UNIGRAM, BPE):
        what = f"model_type is {model.model_type}; {UNIGRAM} (unigram) and {BPE} (BPE) are known"
    elif model.types.count(UNKNOWN) != 1:
        what = f"{model.types.count(UNKNOWN)} pieces are of type {UNKNOWN} (unknown); there must be one"
    elif UNUSED in model.types:
        what = f"piece {model.texts[model.types.index(UNUSED)]!r} is of type {UNUSED} (unused), which is not supported"
    elif model.space_is_suffix:
        what = "treat_whitespace_as_suffix is set, which is not supported"
    elif not model.escape_whitespaces:
        what = "escape_whitespaces is off, which is not supported"
    if what is not None:
        raise ConfigError(f"{path}: {what}. Convert the tokenizer to a tokenizer.json and put that beside it.")


def _prefix(user_defined: list[str]) -> normalizers.Normalizer:
    """Puts a space before a text. Not before one of these alone: `tokenizers` normalizes them too, to look for them."""
    if not user_defined:
        return normalizers.Prepend(SPACE)
    alone = "|".join(map(re.escape, user_defined))
    return normalizers.Replace(Regex(rf"\A(?!(?:{alone})?\z)"), SPACE)
