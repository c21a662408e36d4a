"""Prompts with images through the whole engine, in every way that it may cut, batch, cache and resume them:
transformers' logits."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from quire.engine import prompt_images
from quire.engine.messages import Beams, Media, Rejected
from tests.engine.image_engine import ImageEngine, Sample, media_of
from tests.engine.models import tiny_vision
from tests.engine.models.paging import config_of
from tests.engine.models.tiny_vision import Picture, picture, prompt_of

Parts = tuple[int | Picture, ...]


@dataclass(frozen=True)
class Family:
    name: str
    path: Path
    reference: PreTrainedModel
    folder: Path

    def engine(self, **args: Any) -> ImageEngine:
        return ImageEngine(self.path, self.folder, **args)

    def pictures(self) -> tuple[Picture, ...]:
        """Of several sizes and aspects: 6, 45, 1, 20 and 16 tokens, the last of one whole window."""
        return tuple(picture(self.name, *size, seed=seed) for seed, size in enumerate(
            [(4, 6), (18, 10), (2, 2), (2, 40), (8, 8)]))

    def check(self, sample: Sample, ids: Sequence[int], pictures: Sequence[Picture]) -> None:
        """Greedy tokens and the logprobs of the likeliest, and those of the prompt where they were asked for."""
        expected = tiny_vision.logits(self.reference, [*ids, *sample.token_ids], pictures).log_softmax(-1)
        assert sample.token_ids
        for place, (token, told) in enumerate(zip(sample.token_ids, sample.logprobs), len(ids) - 1):
            near(told.top_logprobs, expected[place, told.top_ids])
            assert expected[place, token] > expected[place].max() - 1e-3
        for part in sample.prompt_logprobs:
            places = torch.arange(part.first, part.first + len(part.tokens))
            near([token.logprob for token in part.tokens], expected[places - 1, [ids[place] for place in places]])


def near(found: Sequence[float], expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found), expected, atol=2e-4, rtol=0)


def submitted(engine: ImageEngine, prompts: Sequence[Parts], **sampling: Any
              ) -> list[tuple[Sample, list[int], list[Picture]]]:
    found = []
    for parts in prompts:
        ids, pictures = prompt_of(*parts), [part for part in parts if isinstance(part, Picture)]
        found.append((engine.submit(ids, pictures, **sampling)[0], ids, pictures))
    return found


@pytest.fixture(scope="module", params=tiny_vision.FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    path = tmp_path_factory.mktemp(request.param)
    return Family(request.param, path, tiny_vision.write(path, request.param), tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Family:
    path = tmp_path_factory.mktemp("qwen3")
    return Family("qwen3_vl", path, tiny_vision.write(path, "qwen3_vl"), tmp_path_factory.mktemp("pixels"))


def test_every_token_of_prompts_with_images_has_transformers_logits(family: Family) -> None:
    small, tall, dot, wide, window = family.pictures()
    engine = family.engine()
    prompts = [(5, small, 7), (tall,), (3, dot, dot, 2, dot, 40), (20, tall, 3, small, 9, wide, 4), (30,),
               (2, wide, small, tall, window, 50), (1, window, 1)]
    for case in submitted(engine, prompts, prompt_logprobs=0):
        engine.run()
        family.check(*case)
    assert engine.core.scheduler.num_encoded_images == 5


def test_chunked_batched_preempted_and_cached_they_are_what_they_are_alone(family: Family) -> None:
    """With text beside them, in so little room that not all that run can stay, and steps of fewer tokens than a prompt
    or its largest image."""
    small, tall, dot, wide, window = family.pictures()
    engine = family.engine(max_num_batched_tokens=40, num_gpu_blocks_override=20, max_num_seqs=4, max_model_len=320)
    prompts = [(9, tall, 5, small, 30), (60,), (9, tall, 5, small, 12), (3, wide, 70), (window, 2, dot, 1, dot, 44),
               (9, tall, 5, dot, 9), (2,)]
    cases = submitted(engine, prompts, max_tokens=24)
    engine.run()
    for case in cases:
        family.check(*case)
    assert engine.core.scheduler.num_preemptions
    assert cases[2][0].num_cached_tokens >= 64, "of the first one's images"
    for _ in range(2):
        [case] = submitted(engine, prompts[:1])
        engine.run()
        family.check(*case)
    assert case[0].num_cached_tokens >= 80


def test_a_prefix_that_ends_within_an_image_is_found_and_the_rest_of_it_computed(family: Family) -> None:
    tall = family.pictures()[1]
    engine = family.engine(max_num_batched_tokens=40)
    submitted(engine, [(10, tall, 10)])
    engine.step()
    engine.core.abort_owner("test")
    [case] = submitted(engine, [(10, tall, 25)])
    engine.run()
    assert case[0].num_cached_tokens == 32, "the image's tokens are 11 to 55"
    family.check(*case)


def test_one_different_pixel_misses_the_cache(family: Family) -> None:
    tall = family.pictures()[1]
    pixels = tall.pixels.clone()
    pixels[77, 3] += 20.0
    engine = family.engine()
    cases = []
    for one in (tall, replace(tall, pixels=pixels), tall):
        cases += submitted(engine, [(20, one, 30)])
        engine.run()
        family.check(*cases[-1])
    assert [sample.num_cached_tokens for sample, *_ in cases] == [0, 16, 96]
    first, other, _ = (torch.tensor(sample.logprobs[0].top_logprobs) for sample, *_ in cases)
    assert (first - other).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["flat", "4.57"])
def test_all_forms_of_config_json_and_both_sets_of_names_are_read(family: Family, form: str, tmp_path: Path) -> None:
    reference = tiny_vision.write(tmp_path, family.name, tied=True)
    tiny_vision.rewrite_config(tmp_path, form)
    if form == "flat":
        tiny_vision.rename_tensors(tmp_path)
    other = Family(family.name, tmp_path, reference, family.folder)
    engine = other.engine()
    cases = submitted(engine, [(5, family.pictures()[0], 7)])
    engine.run()
    other.check(*cases[0])
    assert engine.core.config.model.eos_token_ids == (2,)
    assert engine.core.config.model.vision == family.engine().core.config.model.vision


# -- what requests may ask beside tokens, and where they may begin and end


def test_a_salt_keeps_equal_images_apart(qwen3: Family) -> None:
    engine = qwen3.engine()
    small = qwen3.pictures()[0]
    ids = prompt_of(20, small, 30)
    samples = []
    for salt in ("", "mine"):
        samples += engine.submit(ids, [small], salt=salt)
        engine.run()
    assert samples[1].num_cached_tokens == 0


def test_samples_and_beams_of_one_prompt_share_its_images(qwen3: Family) -> None:
    small, tall, *_ = qwen3.pictures()
    ids, pictures = prompt_of(7, tall, 3, small, 5), [tall, small]
    engine = qwen3.engine(max_num_batched_tokens=40)
    samples = engine.submit(ids, pictures, n=3)
    beams = engine.submit(ids, pictures, n=2, beams=Beams(3, 6), logprobs=0)
    engine.run()
    for sample in samples:
        qwen3.check(sample, ids, pictures)
    assert engine.core.scheduler.num_encoded_images == 2
    for beam in beams:
        logits = tiny_vision.logits(qwen3.reference, [*ids, *beam.token_ids], pictures).log_softmax(-1)
        near([token.logprob for token in beam.logprobs],
             logits[range(len(ids) - 1, len(ids) + 7), beam.token_ids])


def test_prompts_with_images_are_embedded(qwen3: Family) -> None:
    tall = qwen3.pictures()[1]
    ids = prompt_of(7, tall, 30)
    engine = qwen3.engine(max_num_batched_tokens=40)
    samples = [engine.submit(ids, [tall], pooling=kind, max_tokens=0)[0] for kind in ("last", "mean")]
    engine.run()
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        hidden = qwen3.reference.model(
            tokens, pixel_values=tall.pixels, image_grid_thw=torch.tensor([tall.grid]),
            mm_token_type_ids=(tokens == tiny_vision.IMAGE).int()).last_hidden_state[0]
    for sample, expected in zip(samples, (hidden[-1], hidden.mean(0))):
        torch.testing.assert_close(torch.tensor(struct.unpack(f"{len(expected)}f", sample.pooled)), expected, atol=1e-3,
                                   rtol=1e-3)


def test_a_prompt_may_end_with_an_image(qwen3: Family) -> None:
    """Then its next token depends on a token that is the image's, and with it on features of all depths."""
    small = qwen3.pictures()[0]
    ids = prompt_of(30, small)[:-1]
    for step in (512, len(ids) - 1):  # the last token with the others, and alone
        engine = qwen3.engine(max_num_batched_tokens=step)
        samples = engine.submit(ids, [small], n=2)
        engine.run()
        for sample in samples:
            qwen3.check(sample, ids, [small])


def test_what_one_engine_began_another_one_ends(qwen3: Family) -> None:
    small, tall, *_ = qwen3.pictures()
    ids, pictures = prompt_of(7, tall, 3, small, 5), [tall, small]
    engine = qwen3.engine()
    [whole] = engine.submit(ids, pictures, max_tokens=12)
    engine.run()
    other = qwen3.engine(max_num_batched_tokens=40)
    [rest] = other.submit(ids, pictures, max_tokens=12, output=whole.token_ids[:5])
    other.run()
    assert rest.token_ids == whole.token_ids[5:]


def test_placeholders_without_an_image_are_tokens_like_others(qwen3: Family) -> None:
    ids = prompt_of(4, picture(qwen3.name, 4, 6), 9)
    engine = qwen3.engine()
    [sample] = engine.submit(ids)
    engine.run()
    expected = tiny_vision.logits(qwen3.reference, ids, [])
    assert sample.token_ids[0] == expected[-1].argmax()


# -- what is kept


def test_an_image_is_encoded_once_while_it_is_kept(qwen3: Family) -> None:
    tall, wide = qwen3.pictures()[1], qwen3.pictures()[3]
    engine = qwen3.engine(max_num_batched_tokens=48, enable_prefix_caching=False)
    scheduler = engine.core.scheduler
    cases = submitted(engine, [(5, wide, 4), (2, wide, wide, 4), (5, tall, 4)])
    engine.run()
    assert scheduler.num_encoded_images == 2
    cases += submitted(engine, [(5, tall, 14)])
    engine.run()
    assert scheduler.num_encoded_images == 2
    others = [replace(wide, pixels=wide.pixels + number) for number in range(1, 12)]
    cases += submitted(engine, [(5, other, 4) for other in others])  # of 20 tokens, of which 200 are kept
    engine.run()
    cases += submitted(engine, [(5, tall, 4)])
    engine.run()
    assert scheduler.num_encoded_images == 2 + 11 + 1
    for case in cases:
        qwen3.check(*case)


@pytest.mark.parametrize(("options", "tokens"), [
    (None, 200), ({"max_pixels": 100 * 1024}, 100), ({"size": {"longest_edge": 300 * 1024}}, 300),
    ({"min_pixels": 400 * 1024}, 400), ({"max_pixels": 1024}, 64)])
def test_the_room_is_that_of_a_step_or_of_the_largest_image_that_may_come(
        qwen3: Family, options: dict[str, Any] | None, tokens: int) -> None:
    config = config_of(qwen3.path, max_model_len=512, mm_processor_kwargs=options)
    assert replace(config, max_num_batched_tokens=64).encoder_tokens == tokens
    assert replace(config, max_num_batched_tokens=64, max_model_len=80).encoder_tokens == min(tokens, 80)


def test_images_that_fill_the_room_wait_for_each_other(qwen3: Family) -> None:
    """Two of 170 tokens each do not fit into 200 at once; a small one behind them waits too, and all are served."""
    large = [picture("qwen3_vl", 20, 34, seed) for seed in range(3)]
    engine = qwen3.engine(max_num_batched_tokens=64)
    cases = submitted(engine, [(4, large[0], 3), (6, large[1], 3, large[2], 2), (5, qwen3.pictures()[0], 4)])
    engine.run()
    for case in cases:
        qwen3.check(*case)


def test_aborted_requests_let_go_of_their_images(qwen3: Family) -> None:
    large = [picture("qwen3_vl", 20, 34, seed) for seed in range(3)]
    engine = qwen3.engine(max_num_batched_tokens=64)
    for one in large[:2]:
        submitted(engine, [(4, one, 3)])
        engine.step()
        engine.core.abort_owner("test")
    [case] = submitted(engine, [(4, large[2], 3)])
    engine.run()
    qwen3.check(*case)


# -- refusals


def refused(family: Family, media: Media) -> str:
    engine = family.engine()
    answer = engine.try_submit(prompt_of(4, picture(family.name, 4, 6), 9), [media])
    assert isinstance(answer, Rejected), answer
    assert (answer.kind, answer.param) == ("invalid", "media")
    [sample] = engine.submit([5, 6, 7])
    engine.run()
    assert sample.finish_reason == "length", "the engine goes on"
    return answer.message


def test_what_is_no_image_is_refused_and_only_that(qwen3: Family) -> None:
    ids, one = prompt_of(4, picture("qwen3_vl", 4, 6), 9), picture("qwen3_vl", 4, 6)

    def media(**changes: Any) -> Media:
        [made] = media_of(ids, [one], qwen3.folder)
        return Media(**{**{name: getattr(made, name) for name in made.__struct_fields__}, **changes})

    short = qwen3.folder / "short"
    short.write_bytes(b"1234")
    assert "cannot be read: 4 bytes, not the 147456" in refused(qwen3, media(path=str(short)))
    assert "Image 1 cannot be read: No such file" in refused(qwen3, media(path=str(qwen3.folder / "none")))
    assert "Image 1 cannot be read" in refused(qwen3, media(path=str(qwen3.folder)))
    assert "does not make 7 tokens" in refused(qwen3, media(num_tokens=7))
    assert "5 * 6 patches" in refused(qwen3, media(grid=(1, 5, 6), num_tokens=7))
    assert "has 2 frames" in refused(qwen3, media(grid=(2, 4, 6), num_tokens=12))
    assert "at tokens 400 to 405" in refused(qwen3, media(first=400))
    assert "at tokens -1 to 4" in refused(qwen3, media(first=-1))
    large = media(grid=(1, 2, 2000), num_tokens=1000)
    answer = qwen3.engine(max_model_len=1024).try_submit([5] * 1010, [large])
    assert isinstance(answer, Rejected)
    assert "Image 1 becomes 1000 tokens, and this server takes images of at most 512" in answer.message


def test_without_a_free_file_a_request_is_to_come_back(qwen3: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(path: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    ids, one = prompt_of(4, picture("qwen3_vl", 4, 6), 9), picture("qwen3_vl", 4, 6)
    engine, media = qwen3.engine(), media_of(ids, [one], qwen3.folder)
    with monkeypatch.context() as patch:
        patch.setattr(prompt_images.os, "open", none_left)
        answer = engine.try_submit(ids, media)
    assert isinstance(answer, Rejected)
    assert (answer.kind, answer.retry_after_s) == ("overloaded", 1.0)


def test_images_leave_files_for_the_steps_to_open(qwen3: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = picture("qwen3_vl", 4, 6), picture("qwen3_vl", 4, 6, seed=1)
    engine = qwen3.engine()
    free = os.open("/dev/null", os.O_RDONLY)  # the least number that is free
    os.close(free)
    monkeypatch.setattr(prompt_images.resource, "getrlimit", lambda what: (free + 1 + prompt_images._SPARE_FILES, 0))
    ids = prompt_of(4, one, 9, one)
    media = media_of(ids, [one, one], qwen3.folder)
    same = [media[0], Media(media[0].digest, media[1].first, media[1].num_tokens, media[1].grid, media[0].path)]
    [sample] = [engine.try_submit(ids, same)]
    assert not isinstance(sample, Rejected), "one file for an image that comes twice"
    answer = engine.try_submit(prompt_of(4, other, 9), media_of(prompt_of(4, other, 9), [other], qwen3.folder))
    assert isinstance(answer, Rejected) and answer.reason == "queue_requests"
    monkeypatch.undo()
    engine.run()
    qwen3.check(sample[0], ids, [one, one])


def test_files_are_closed_when_their_requests_have_ended(qwen3: Family) -> None:
    engine = qwen3.engine()
    before = os.listdir("/proc/self/fd")
    cases = submitted(engine, [(5, qwen3.pictures()[0], 4), (5, qwen3.pictures()[1], 4)])
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    engine.step()
    engine.core.abort("test", [1])
    engine.run()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    qwen3.check(*cases[0])


def test_a_second_image_must_come_behind_the_first(qwen3: Family) -> None:
    ids, one = prompt_of(4, picture("qwen3_vl", 4, 6), 9), picture("qwen3_vl", 4, 6)
    twice = media_of(ids, [one], qwen3.folder) * 2
    answer = qwen3.engine().try_submit(ids, twice)
    assert isinstance(answer, Rejected)
    assert "Image 2 is to be at tokens 5 to 10; they must come behind" in answer.message


# -- several ranks


@pytest.mark.parametrize("split", [{"tensor_parallel_size": 2},
                                   pytest.param({"pipeline_parallel_size": 2}, marks=pytest.mark.slow)])
def test_ranks_that_share_a_model_give_transformers_logits(qwen3: Family, split: dict[str, int]) -> None:
    small, tall, dot, *_ = qwen3.pictures()
    engine = qwen3.engine(max_num_batched_tokens=40, **split)
    try:
        cases = submitted(engine, [(5, small, 7), (9, tall, 5, dot, 30), (20,), (9, tall, 5, small, 2)])
        engine.run()
    finally:
        engine.close()
    for case in cases:
        qwen3.check(*case)
