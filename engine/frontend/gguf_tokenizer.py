"""Builds a `tokenizers.Tokenizer` from the vocabulary inside a GGUF file.

Three kinds of vocabulary are known: byte-level BPE ("gpt2", whose `pre` names the pre-tokenizer), SentencePiece BPE
("llama", merges follow from the scores) and Gemma's BPE over plain text ("gemma4"). A wrong pre-tokenizer still
round-trips, so nobody would notice it: an unknown one is an error. Called by `quire.engine.frontend.tokenizer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from quire.engine.errors import ConfigError

SPACE = "\u2581"  # what SentencePiece writes for a space
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # tokenizer.ggml.token_type

# Contractions, words, numbers, other signs and white space: the parts that most published patterns are made of.
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s")

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = "|".join((_CASELESS, _WORD, r"\p{N}{1,3}", _SIGNS, _SPACES))
_QWEN2 = "|".join((_CASELESS, _WORD, r"\p{N}", _SIGNS, _SPACES))
_QWEN35 = "|".join((_CASELESS, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
                    _SPACES))
_TEKKEN = "|".join((_CASED_WORDS[0] % "", _CASED_WORDS[1] % "", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES))
_GPT4O = "|".join((_CASED_WORDS[0] % f"{_CASELESS}?", _CASED_WORDS[1] % f"{_CASELESS}?", r"\p{N}{1,3}",
                   r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES))
_DEEPSEEK3 = "|".join((r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
                       r" ?[\p{P}\p{S}]+[\r\n]*", _SPACES))
_DEEPSEEK_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Each pattern in turn cuts the pieces that the one before left."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as it stands is not merged up from bytes
    add_bos: bool = False  # where the file does not say
    composes: bool = False  # accents and their letters are one character before anything else (NFC)


_SIMPLE = _Recipe((_GPT2,))
_DIGITS = _Recipe((r"\p{N}", _GPT2))
_LLAMA3_RECIPE = _Recipe((_LLAMA3,), ignore_merges=True, add_bos=True)
_RECIPES = {
    **dict.fromkeys(("gpt-2", "phi-2", "jais", "trillion", "gigachat", "exaone4", "mellum", "a.x-4.0",
                     "granite-docling"), _SIMPLE),
    **dict.fromkeys(("mpt", "olmo"), _Recipe((_GPT2,), composes=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    "command-r": _Recipe((r"\p{N}", _GPT2), composes=True),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
                    _LLAMA3_RECIPE),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _Recipe((_LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), _Recipe((_LLAMA3,), ignore_merges=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), _Recipe((_QWEN2,), composes=True)),
    **dict.fromkeys(("hunyuan", "megrez", "grok-2", "solar-open", "kormo"), _Recipe((_QWEN2,))),
    "qwen35": _Recipe((_QWEN35,), composes=True),
    "tekken": _Recipe((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), _Recipe((_GPT4O,))),
    "falcon": _Recipe((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-llm": _Recipe((r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$",
                             _DEEPSEEK_HAN, r"\p{N}+")),
    "deepseek-coder": _Recipe((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"),
                    _Recipe((r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3))),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _Recipe((_BLOOM,))),
    "viking": _Recipe((_BLOOM, r"\p{N}")),
}
_ADVICE = ("Pass --tokenizer with the directory of the original model (the one that holds tokenizer.json), or a GGUF "
           "file made by a newer converter.")


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """A tokenizer and what the file says of it."""

    rust: RustTokenizer
    num_tokens: int
    special_tokens: dict[str, str]  # "bos_token" and "eos_token", where stated
    chat_template: str | None


def build(metadata: dict[str, Any], path: str) -> GgufVocabulary:
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
    _surround(rust, special_tokens.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", add_bos) else None,
              special_tokens.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", False) else None)
    template = metadata.get("tokenizer.chat_template")
    return GgufVocabulary(rust, len(tokens), special_tokens, template if isinstance(template, str) else None)


def _byte_level(metadata: dict[str, Any], tokens: list[str], path: str) -> tuple[RustTokenizer, bool]:
    pre = metadata.get("tokenizer.ggml.pre")
    recipe = _RECIPES.get(pre) if isinstance(pre, str) else None
    if recipe is None:
        known = ", ".join(sorted(_RECIPES))
        raise ConfigError(f"{path}: tokenizer.ggml.pre is {pre!r}, a pre-tokenizer that is not known here, and a guess "
                          f"would give wrong token ids without a sign of it. {_ADVICE} Known: {known}.")
    rust = RustTokenizer(models.BPE(_ids(tokens), _merges(metadata, path), ignore_merges=recipe.ignore_merges))
    if recipe.composes:
        rust.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in recipe.patterns]
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    rust.decoder = decoders.ByteLevel()
    return rust, recipe.add_bos


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], merges: list[tuple[str, str]], *,
                   space_prefix: bool) -> RustTokenizer:
    unknown_id = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    unknown = tokens[unknown_id] if isinstance(unknown_id, int) and 0 <= unknown_id < len(tokens) else None
    rust = RustTokenizer(models.BPE(_ids(tokens), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", space_prefix)
    spaces: list[Any] = [normalizers.Replace(" ", SPACE)]
    rust.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), *spaces] if prefixed else spaces)
    if metadata["tokenizer.ggml.model"] == "gemma4":  # its merges never cross a run of line ends
        rust.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        steps.append(decoders.Strip(" ", 1, 0))
    rust.decoder = decoders.Sequence(steps)
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
    """SentencePiece joins the neighbours whose joint token scores best, so each split of a token is a merge."""
    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise ConfigError(f"{path}: {len(scores)} scores for {len(tokens)} tokens. {_ADVICE}")
    types = metadata.get("tokenizer.ggml.token_type") or [0] * len(tokens)
    known = set(tokens)
    found = []
    for token, score, type in zip(tokens, scores, types):
        if type in (_UNKNOWN, _CONTROL, _BYTE):  # no text is spelled with these
            continue
        for cut in range(1, len(token)):
            if token[:cut] in known and token[cut:] in known:
                found.append((-score, token[:cut], token[cut:]))
    found.sort(key=lambda merge: merge[0])  # stable: equal scores keep the order of the vocabulary
    return [(left, right) for _, left, right in found]


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in reversed(list(enumerate(tokens)))}  # of equal texts the first id counts


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


def _surround(rust: RustTokenizer, bos: str | None, eos: str | None) -> None:
    before, after = ([] if text is None else [text] for text in (bos, eos))
    if before or after:
        rust.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[(text, rust.token_to_id(text)) for text in {*before, *after}])
