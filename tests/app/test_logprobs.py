"""Tokens that are parts of characters, and tokens that look alike, in both shapes of OpenAI's API."""

from __future__ import annotations

import msgspec
import pytest

from quire.app.logprobs import LegacyLogprobs, chat_logprobs
from quire.app.schemas.chat import ChatLogprob
from quire.app.schemas.completions import CompletionLogprobs
from quire.engine.frontend.generation import Generation, SampleUpdate
from quire.engine.messages import Delta, TokenLogprobs
from quire.engine.sampling_params import RequestOutputKind, SamplingParams
from quire.engine.tokenizers.tokenizer import load_tokenizer
from tests.conftest import smollm2_file
from tests.engine.conftest import model_at

TOKENIZER = load_tokenizer(model_at(smollm2_file()))
TEXT = "Hi 🦊! ñandú 🦊"
IDS = TOKENIZER.encode(TEXT, add_special_tokens=False)
PARTIAL = [id for id in IDS if b"\xef\xbf\xbd" in TOKENIZER.token_text(id).encode()]


def updates(ids: list[int], prompt: list[int], **changes: object) -> list[SampleUpdate]:
    params = SamplingParams(output_kind=RequestOutputKind.DELTA, logprobs=1, **changes)  # type: ignore[arg-type]
    generation = Generation(params, prompt, TOKENIZER, 1)
    found = []
    for i, id in enumerate(ids):
        last = "length" if i == len(ids) - 1 else ""
        update = generation.push(0, Delta(0, [id], last, logprobs=[TokenLogprobs(-0.5, 1, [id], [-0.5])]))
        found += [update] if update is not None else []
    return found


def legacy(given: list[SampleUpdate], prompt: list[int]) -> tuple[str, CompletionLogprobs]:
    table, lists, text = LegacyLogprobs(TOKENIZER, prompt, SamplingParams()), CompletionLogprobs([], [], [], []), ""
    for update in given:
        text += update.text
        table.extend(lists, update)
    return text, lists


def test_there_are_parts_of_characters_here() -> None:
    assert len(PARTIAL) >= 4


def whole_characters(ids: list[int]) -> str:
    return b"".join(map(TOKENIZER.token_bytes, ids)).decode(errors="ignore")


@pytest.mark.parametrize("num_prompt", [1, IDS.index(PARTIAL[0]) + 1], ids=["text", "half a character"])
def test_offsets_are_into_the_text_that_was_sent(num_prompt: int) -> None:
    prompt, ids = IDS[:num_prompt], IDS[num_prompt:]
    text, lists = legacy(updates(ids, prompt), prompt)
    before = len(whole_characters(prompt))
    assert text == TEXT[before:]
    assert lists.text_offset == [len(whole_characters(prompt + ids[:i])) - before for i in range(len(ids))]


def test_no_offset_is_beyond_a_text_that_a_stop_string_cut() -> None:
    text, lists = legacy(updates(TOKENIZER.encode(" one two three"), [1], stop=["two"]), [1])
    assert text == " one "
    assert lists.text_offset[0] == 0
    assert max(lists.text_offset) <= len(text)


def test_alternatives_that_are_no_text_do_not_hide_each_other() -> None:
    chosen, *others = dict.fromkeys(PARTIAL)
    ids = [chosen, *others]
    logprobs = [-0.5 - i for i in range(len(ids))]
    update = SampleUpdate(0, "", [chosen], [TokenLogprobs(-0.5, 1, ids, logprobs)])
    _, lists = legacy([update], [1])
    spelled = "".join(f"\\x{byte:02x}" if byte >= 0x80 else chr(byte) for byte in TOKENIZER.token_bytes(chosen))
    assert lists.tokens == ["bytes:" + spelled]
    top = msgspec.json.decode(lists.top_logprobs[0])
    assert top["bytes:" + spelled] == -0.5
    assert sorted(top.values(), reverse=True) == logprobs
    chat = msgspec.json.decode(chat_logprobs(TOKENIZER, update).content[0], type=ChatLogprob)
    assert chat.token == spelled
    assert len({alternative.token for alternative in chat.top_logprobs}) == len(ids)
    assert [bytes(alternative.bytes) for alternative in chat.top_logprobs] == [*map(TOKENIZER.token_bytes, ids)]


@pytest.mark.parametrize("first", [True, False])
def test_the_chosen_token_keeps_its_text_whoever_else_has_it(first: bool) -> None:
    beyond = TOKENIZER.vocab_size  # ids of a padded vocabulary: none has a text
    top = [beyond, beyond + 1, beyond + 2] if first else [beyond + 1, beyond + 2, beyond]
    own = -1.0 if first else -3.0
    update = SampleUpdate(0, "", [beyond], [TokenLogprobs(own, 1, top, [-1.0, -2.0, -3.0])])
    _, lists = legacy([update], [1])
    found = msgspec.json.decode(lists.top_logprobs[0])
    assert found[""] == own
    assert len(found) == 3
    assert f"token_id:{beyond + 1}" in found


def test_a_chosen_token_that_is_not_among_the_likeliest_is_there() -> None:
    _, lists = legacy([SampleUpdate(0, "Hi", IDS[:1], [TokenLogprobs(-9.0, 50, [5], [-0.1])])], [1])
    found = msgspec.json.decode(lists.top_logprobs[0])
    assert found == {TOKENIZER.token_text(5): -0.1, TOKENIZER.token_text(IDS[0]): -9.0}
