"""An engine core that tests give prompts with pictures to, without a front end."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.engine.assembly import assemble
from quire.engine.config import EngineArgs
from quire.engine.messages import Media, PromptLogprobs, Rejected, SampleSpec, Sampling, Submit, TokenLogprobs
from tests.engine.models.tiny_vision import IMAGE, Picture


@dataclass
class Sample:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    finish_reason: str = ""
    num_cached_tokens: int = 0
    pooled: bytes = b""


def media_of(ids: Sequence[int], pictures: Sequence[Picture], folder: Path) -> list[Media]:
    """With a file for each picture, its own even where two are equal."""
    found, start = [], 0
    for picture in pictures:
        first = ids.index(IMAGE, start)
        start = first + picture.num_tokens
        file = folder / uuid.uuid4().hex
        file.write_bytes(picture.pixels.numpy().tobytes())
        digest = hashlib.blake2b(repr(picture.grid).encode() + file.read_bytes(), digest_size=16).digest()
        found.append(Media(digest, first, picture.num_tokens, picture.grid, str(file)))
    return found


class ImageEngine:
    def __init__(self, path: Path, folder: Path, **args: Any) -> None:
        """`folder`: where pixels are written to."""
        self.core = assemble(EngineArgs(model=str(path), **{"skip_tokenizer_init": True, "device": "cpu",
                             "dtype": "float32", "cpu_threads": 1, "max_model_len": 512, **args}), lambda *_: None)
        self._folder = folder
        self._next = 0
        self.samples: dict[int, Sample] = {}

    def submit(self, ids: Sequence[int], pictures: Sequence[Picture] = (), **more: Any) -> list[Sample]:
        """`more`: as `try_submit`."""
        answer = self.try_submit(ids, media_of(ids, pictures, self._folder), **more)
        assert not isinstance(answer, Rejected), answer
        return answer

    def try_submit(self, ids: Sequence[int], media: list[Media], *, n: int = 1, salt: str = "",
                   output: Sequence[int] = (), **sampling: Any) -> list[Sample] | Rejected:
        """`output`: what another engine produced before; `sampling`: fields that differ from a greedy one's."""
        numbers = range(self._next, self._next + n)
        self._next += n
        answer = self.core.submit("test", Submit(
            self.core.info.instance, str(self._next), list(ids),
            Sampling(**{"temperature": 0.0, "logprobs": 3, "max_tokens": 8, **sampling}),
            [SampleSpec(number, number, [*output]) for number in numbers], cache_salt=salt, media=media,
            resumed=bool(output)))
        for file in map(Path, {one.path for one in media}):
            if file.is_file():  # open, so that it needs no name any more
                file.unlink()
        if isinstance(answer, Rejected):
            return answer
        made = {number: Sample() for number in numbers}
        self.samples.update(made)
        return list(made.values())

    def step(self) -> None:
        for _, delta in self.core.step():
            sample = self.samples[delta.id]
            sample.token_ids += delta.token_ids
            sample.logprobs += delta.logprobs
            if delta.prompt_logprobs is not None:
                sample.prompt_logprobs.append(delta.prompt_logprobs)
            if delta.num_cached_tokens > 0:
                sample.num_cached_tokens = delta.num_cached_tokens
            sample.finish_reason = sample.finish_reason or delta.finish_reason
            sample.pooled = delta.pooled

    def run(self) -> None:
        while self.core.has_work:
            self.step()

    def close(self) -> None:
        self.core.close()
