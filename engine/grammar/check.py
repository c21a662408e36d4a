"""Whether a form that a caller asked for can be followed, found out before the engine hears of the request.

A front end has one of these for its model. Making a grammar takes about 1 ms; its limits (`grammar.limits`) end what
would take long. What was found of the last forms is remembered.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from threading import Lock

from llguidance import LLMatcher, LLTokenizer

from quire.engine.errors import InvalidRequestError
from quire.engine.grammar.deep_stack import in_deep_stack
from quire.engine.grammar.fault import place_of
from quire.engine.grammar.limits import LIMITS
from quire.engine.grammar.source import grammar_of
from quire.engine.grammar.vocabulary import grammar_vocabulary
from quire.engine.model_config import ModelConfig
from quire.engine.structured_outputs import FIELDS, StructuredOutputsParams
from quire.engine.tokenizers.tokenizer import Tokenizer, end_token_ids

_REMEMBERED_CHARACTERS = 4 * 2**20  # of forms and their grammars
_MOST_SHOWN = 300
_OF_REGEX = re.compile(r"\(in regex\): (?:regex parse error:.*\nerror: (.+?)|(.+?)(?: in regex .*?)?)\n +\d+ \|",
                       re.DOTALL)
_OF_PATTERN = re.compile(r"^regex parse error:.*\nerror: ", re.DOTALL)
_OF_OTHERS = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: |\n +\d+ \| .*", re.DOTALL)


def grammar_check(model: ModelConfig, tokenizer: Tokenizer | None, vocab_size: int) -> GrammarCheck:
    """Raises InvalidRequestError where there is no tokenizer, or no token that ends a text."""
    if tokenizer is None:
        raise InvalidRequestError("structured_outputs need a tokenizer, and this engine has none "
                                  "(skip_tokenizer_init).", "structured_outputs")
    ends = end_token_ids(model, tokenizer)
    if not any(token < vocab_size for token in ends):
        raise InvalidRequestError("structured_outputs need a token that ends a text, and neither the model's files nor "
                                  "its tokenizer's name one (eos_token_id).", "structured_outputs")
    return GrammarCheck(tokenizer, vocab_size, ends)


class GrammarCheck:
    """Safe to call from several threads, which take turns."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_token_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size, self._ends = tokenizer, vocab_size, tuple(end_token_ids)
        self._vocabulary: LLTokenizer | None = None
        self._found: OrderedDict[str, str | InvalidRequestError] = OrderedDict()
        self._characters = 0
        self._turn = Lock()

    def grammar(self, wanted: StructuredOutputsParams) -> str:
        """In llguidance's form. Raises InvalidRequestError: what is wrong, and where."""
        key = json.dumps([getattr(wanted, name) for name in FIELDS])
        with self._turn:
            found = self._found.get(key)
            if found is None:
                found = self._found[key] = in_deep_stack(partial(self._find, wanted))
                self._characters += _characters(key, found)
                while self._characters > _REMEMBERED_CHARACTERS:
                    self._characters -= _characters(*self._found.popitem(last=False))
            elif key in self._found:
                self._found.move_to_end(key)
        if isinstance(found, InvalidRequestError):
            raise InvalidRequestError(f"{wanted.name}: {found.message}", wanted.name)
        return found

    def _find(self, wanted: StructuredOutputsParams) -> str | InvalidRequestError:
        grammar, why = self._tried(wanted)
        if why is None:
            return grammar
        place = place_of(wanted, why, lambda part: self._tried(part)[1]) if grammar else ""
        return InvalidRequestError(f"{_in_a_line(why)}{place}.")

    def _tried(self, wanted: StructuredOutputsParams) -> tuple[str, str | None]:
        """The grammar, and why it cannot be followed. Without one, the reason names the place."""
        try:
            grammar = grammar_of(wanted, *self._named_tokens())
        except Exception as error:  # of a translation of other grammars, whose errors are of several kinds
            return "", str(error)
        why = self._why_not(grammar)
        return grammar, None if why is None else _told(why, wanted)

    def _named_tokens(self) -> tuple[dict[str, int], dict[str, int]]:
        """Special tokens, and others that were added to the vocabulary, by their texts."""
        tokenizer = self._tokenizer
        special, added = ({tokenizer.token_text(token): token for token in ids if token < self._vocab_size}
                          for ids in (tokenizer.special_ids, tokenizer.added_ids - tokenizer.special_ids))
        return special, added

    def _why_not(self, grammar: str) -> str | None:
        if self._vocabulary is None:
            self._vocabulary = grammar_vocabulary(self._tokenizer, self._vocab_size, self._ends)
        matcher = LLMatcher(self._vocabulary, grammar, limits=LIMITS, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            return matcher.get_error().partition("\n<state>")[0]
        if matcher.is_stopped() and not matcher.is_accepting():
            return "no text is allowed by it"
        return None


def _characters(key: str, found: str | InvalidRequestError) -> int:
    return len(key) + len(found if isinstance(found, str) else found.message)


def _told(why: str, wanted: StructuredOutputsParams) -> str:
    """llguidance's words, without those that only its programmers can use."""
    if "Enable 'coerce_one_of'" in why:
        return "a oneOf whose branches overlap, or may, is not supported; write anyOf"
    if wanted.grammar is None and (found := _OF_REGEX.search(why)):
        # Around the reason the expression is written out, twice. "WordUnicode" and the like are what \b becomes.
        return "regex: " + (r"\b and \B are not supported" if "; Word" in found[0] else found[1] or found[2])
    # Lines of a grammar that the caller has not written.
    return why if wanted.grammar is not None else _OF_PATTERN.sub("pattern: ", _OF_OTHERS.sub("", why))


def _in_a_line(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."
