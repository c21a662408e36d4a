"""A long text costs what its limit costs, and has the tokens that it always had."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.prompts import CHARS_ALWAYS_TAKEN, off_the_loop, to_token_ids
from quire.engine.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import smollm2_file
from tests.engine.conftest import SMOLLM2_TEXT, model_at

SMOLLM2 = load_tokenizer(model_at(smollm2_file()))
PEAK_AFTER = """
import sys
from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.prompts import to_token_ids
from tests.engine.frontend.test_prompts import SMOLLM2

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024

text = eval(sys.argv[1])
SMOLLM2.encode("warm")
before = peak()
try:
    to_token_ids(text, SMOLLM2, True, 8192)
except InvalidRequestError:
    print(peak() - before)
"""


@settings(deadline=None, max_examples=8)
@given(text=SMOLLM2_TEXT.filter(bool), num_chars=st.integers(2**16 - 50, 2**18))
def test_a_text_never_has_fewer_tokens_than_counted(text: str, num_chars: int) -> None:
    long = (text * (num_chars // len(text) + 1))[:num_chars]
    assert SMOLLM2.counted_tokens(long, 10**9) <= len(SMOLLM2.encode(long, add_special_tokens=False))


@pytest.mark.parametrize("text", ["a", " ", "hello ", "oh", "lo lo\n", "\U0001f44b", "ö\u0308"])
def test_so_it_is_where_nothing_separates_words(sentencepiece: Tokenizer, text: str) -> None:
    long = (text * 150_000)[:150_000]
    counted = sentencepiece.counted_tokens(long, 10**9)
    exact = len(sentencepiece.encode(long, add_special_tokens=False))
    assert exact - 4096 <= counted <= exact


@pytest.mark.parametrize("length", [100, 2**16 + 1, 200_000])
def test_a_text_that_fits_is_encoded_as_without_a_limit(sentencepiece: Tokenizer, length: int) -> None:
    text = ("hello hell ohe " * length)[:length]
    for tokenizer in (SMOLLM2, sentencepiece):
        ids = tokenizer.encode(text)
        assert to_token_ids(text, tokenizer, True, len(ids) + 1) == (text, ids)


def test_a_text_that_cannot_fit_is_refused_at_its_beginning(sentencepiece: Tokenizer,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    encode = sentencepiece.encode
    monkeypatch.setattr(sentencepiece, "encode", lambda text, *args, **kwargs: (
        given.append(len(text)), encode(text, *args, **kwargs))[1])
    with pytest.raises(InvalidRequestError, match=r"maximum context length is 8192 .* 5 output .* at least \d+ input"):
        to_token_ids("a" * CHARS_ALWAYS_TAKEN, sentencepiece, True, 8192, 5)
    assert given == [2**16]
    with pytest.raises(InvalidRequestError, match=f"{CHARS_ALWAYS_TAKEN + 1} characters.* {CHARS_ALWAYS_TAKEN} char"):
        to_token_ids(" " * (CHARS_ALWAYS_TAKEN + 1), sentencepiece, True, 8192)
    assert given == [2**16]


@pytest.mark.parametrize("text", ["'1 ' * 130_000", "'1 ' * 7_000_000", "chr(0x1f44b) * 260_000"])
def test_a_refusal_takes_some_tens_of_mib(text: str) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK_AFTER, text], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64


async def test_what_fails_off_the_loop_fails_here() -> None:
    with pytest.raises(InvalidRequestError, match="valid Unicode"):
        await off_the_loop(SMOLLM2.encode, "\ud800")
