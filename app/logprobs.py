"""The engine's log-probabilities (token ids and numbers) in the two shapes of OpenAI's API.

A token that is no whole text is spelled as OpenAI spells it, each byte that belongs to no character as `\\xf0`: with
U+FFFD for them all, different tokens would look the same. What is kept until the end of a reply is JSON already.
"""

from __future__ import annotations

import msgspec

from quire.app.json_pieces import as_raw
from quire.app.schemas.chat import ChatLogprob, ChatLogprobs, TopLogprob
from quire.app.schemas.completions import CompletionLogprobs
from quire.app.schemas.prompt_logprobs import PromptLogprob
from quire.engine.frontend.detokenizer import Detokenizer
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.messages import TokenLogprobs
from quire.engine.sampling_params import SamplingParams
from quire.engine.tokenizers.tokenizer import Tokenizer

_NULL = msgspec.Raw(b"null")
FLOOR = -9999.0  # JSON has no -inf; vLLM's and OpenAI's value for "impossible"


def chat_logprobs(tokenizer: Tokenizer, update: SampleUpdate) -> ChatLogprobs:
    content = []
    for token_id, token in zip(update.token_ids, update.logprobs):
        top = [TopLogprob(_spelled(tokenizer.token_bytes(id)), max(logprob, FLOOR), list(tokenizer.token_bytes(id)))
               for id, logprob in zip(token.top_ids, token.top_logprobs)]
        data = tokenizer.token_bytes(token_id)
        content.append(as_raw(ChatLogprob(_spelled(data), max(token.logprob, FLOOR), list(data), top)))
    return ChatLogprobs(content)


class LegacyLogprobs:
    """Of one completion: knows how much text lies before the next token."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int], params: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt_token_ids, params.skip_special_tokens,
                                        params.spaces_between_special_tokens)
        self._num_characters = 0  # that the tokens so far complete
        self._num_sent = 0

    def begin(self, lists: CompletionLogprobs, token_ids: list[int], told: list[TokenLogprobs | None],
              text: str) -> None:
        """Append what is echoed: the prompt's tokens. They make `text`, but for one that the tokenizer put before it.
        """
        detokenizer = Detokenizer(self._tokenizer, [], False, False)
        is_put_before = not text.startswith(self._tokenizer.token_text(token_ids[0]))
        for place, (token_id, token) in enumerate(zip(token_ids, told)):
            lists.tokens.append(self._key(token_id))
            lists.text_offset.append(min(self._num_characters, len(text)))
            lists.token_logprobs.append(None if token is None else max(token.logprob, FLOOR))
            lists.top_logprobs.append(_NULL if token is None else as_raw(self._by_text(token_id, token)))
            if place or not is_put_before:
                self._num_characters += len(detokenizer.push([token_id]))
        self._num_characters = self._num_sent = len(text)

    def extend(self, lists: CompletionLogprobs, update: SampleUpdate) -> None:
        """Append what `update` brings."""
        self._num_sent += len(update.text)
        for token_id, token in zip(update.token_ids, update.logprobs):
            lists.tokens.append(self._key(token_id))
            lists.token_logprobs.append(max(token.logprob, FLOOR))
            lists.text_offset.append(self._num_characters)
            lists.top_logprobs.append(as_raw(self._by_text(token_id, token)))
            self._num_characters += len(self._detokenizer.push([token_id]))
        if update.finish_reason is not None:  # a stop string was cut off
            lists.text_offset = [min(offset, self._num_sent) for offset in lists.text_offset]

    def _by_text(self, token_id: int, token: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens, and the one that was chosen; one whose text another has already goes by its id."""
        chosen = self._key(token_id)
        found: dict[str, float] = {}
        for id, logprob in zip(token.top_ids, token.top_logprobs):
            key = self._key(id)
            if id != token_id and (key == chosen or key in found):
                key = f"token_id:{id}"
            found[key] = max(logprob, FLOOR)
        found.setdefault(chosen, max(token.logprob, FLOOR))
        return found

    def _key(self, token_id: int) -> str:
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + _spelled(data)


def prompt_logprobs(tokenizer: Tokenizer, token_ids: list[int], told: list[TokenLogprobs | None]) -> list[msgspec.Raw]:
    """vLLM's shape: null, then of each token an object from ids to logprobs, the token's own first."""
    found = []
    for token_id, of in zip(token_ids, told):
        if of is None:
            found.append(_NULL)
            continue
        ranked = [(token_id, of.logprob, of.rank)]
        ranked += [(id, logprob, rank) for rank, (id, logprob) in enumerate(zip(of.top_ids, of.top_logprobs), 1)
                   if id != token_id]
        found.append(as_raw({str(id): PromptLogprob(max(logprob, FLOOR), rank, tokenizer.token_text(id))
                             for id, logprob, rank in ranked}))
    return found


def _spelled(data: bytes) -> str:
    return data.decode(errors="backslashreplace")
