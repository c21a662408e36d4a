"""The engine's log-probabilities (token ids and numbers) in the two shapes of OpenAI's API."""

from __future__ import annotations

from quire.app.schemas.chat import ChatLogprob, ChatLogprobs, TopLogprob
from quire.app.schemas.completions import CompletionLogprobs
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.frontend.tokenizer import Tokenizer

FLOOR = -9999.0  # JSON has no -inf; vLLM's and OpenAI's value for "impossible"


def chat_logprobs(tokenizer: Tokenizer, update: SampleUpdate) -> ChatLogprobs:
    content = []
    for token_id, token in zip(update.token_ids, update.logprobs):
        top = [TopLogprob(tokenizer.token_text(id), max(logprob, FLOOR), list(tokenizer.token_bytes(id)))
               for id, logprob in zip(token.top_ids, token.top_logprobs)]
        content.append(ChatLogprob(tokenizer.token_text(token_id), max(token.logprob, FLOOR),
                                   list(tokenizer.token_bytes(token_id)), top))
    return ChatLogprobs(content)


class LegacyLogprobs:
    """Of one completion: knows how much text lies before the next token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def extend(self, lists: CompletionLogprobs, update: SampleUpdate) -> None:
        """Append what `update` brings."""
        for token_id, token in zip(update.token_ids, update.logprobs):
            text = self._tokenizer.token_text(token_id)
            lists.tokens.append(text)
            lists.token_logprobs.append(max(token.logprob, FLOOR))
            lists.text_offset.append(self._offset)
            top = {self._tokenizer.token_text(id): max(logprob, FLOOR)
                   for id, logprob in zip(token.top_ids, token.top_logprobs)}
            top.setdefault(text, max(token.logprob, FLOOR))
            lists.top_logprobs.append(top)
            self._offset += len(text)
