"""BPE over bytes, as GPT-2 introduced it: each byte is written as a character, and a text is cut into pieces by
patterns before it is merged up. Knows how the published tokenizers cut. A wrong pattern still round-trips, so nobody
would notice it: callers refuse what is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte: printable ones stand for themselves."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {**{chr(b): b for b in own}, **{chr(256 + i): b for i, b in enumerate(others)}}


BYTE_OF = _byte_alphabet()

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
class Recipe:
    """How texts are cut: each pattern in turn cuts the pieces that the one before left."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as it stands is not merged up from bytes
    add_bos: bool = False  # where nothing says otherwise
    composes: bool = False  # accents and their letters are one character before anything else (NFC)


_SIMPLE = Recipe((_GPT2,))
_DIGITS = Recipe((r"\p{N}", _GPT2))
_LLAMA3_RECIPE = Recipe((_LLAMA3,), ignore_merges=True, add_bos=True)
RECIPES = {  # by the names that GGUF files give them
    **dict.fromkeys(("gpt-2", "phi-2", "jais", "trillion", "gigachat", "exaone4", "mellum", "a.x-4.0",
                     "granite-docling"), _SIMPLE),
    **dict.fromkeys(("mpt", "olmo"), Recipe((_GPT2,), composes=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    "command-r": Recipe((r"\p{N}", _GPT2), composes=True),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
                    _LLAMA3_RECIPE),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Recipe((_LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), Recipe((_LLAMA3,), ignore_merges=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), Recipe((_QWEN2,), composes=True)),
    **dict.fromkeys(("hunyuan", "megrez", "grok-2", "solar-open", "kormo"), Recipe((_QWEN2,))),
    "qwen35": Recipe((_QWEN35,), composes=True),
    "tekken": Recipe((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), Recipe((_GPT4O,))),
    "falcon": Recipe((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-llm": Recipe((r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$",
                             _DEEPSEEK_HAN, r"\p{N}+")),
    "deepseek-coder": Recipe((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"),
                    Recipe((r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3))),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Recipe((_BLOOM,))),
    "viking": Recipe((_BLOOM, r"\p{N}")),
}


def byte_level(ids: dict[str, int], merges: list[tuple[str, str]], recipe: Recipe) -> RustTokenizer:
    """The tokenizer with these tokens, spelled in the alphabet of `BYTE_OF`."""
    rust = RustTokenizer(models.BPE(ids, merges, ignore_merges=recipe.ignore_merges))
    if recipe.composes:
        rust.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Split(Regex(p), "isolated") for p in recipe.patterns]
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    rust.decoder = decoders.ByteLevel()
    return rust
