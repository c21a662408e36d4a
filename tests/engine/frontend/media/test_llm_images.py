"""Images in Python: beside prompts, in messages, and where they are missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedModel

from quire import LLM, SamplingParams
from quire.engine.errors import InvalidRequestError
from tests.engine.frontend.media.pictures import file_of, picture, url_of
from tests.engine.models import seeing, tiny_vision
from tests.engine.models.tiny_vision import Picture

PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPT = f"<|im_start|>user\n{PLACE}What is it?<|im_end|>\n<|im_start|>assistant\n"
GREEDY = SamplingParams(temperature=0, max_tokens=3, logprobs=0)
RED, WHITE = (Image.new("RGB", (56, 56), color) for color in ("red", "white"))
ROWS = 4 * 4 * 1176 * 4  # bytes of either


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp("seeing")
    return path, seeing.write(path)


@pytest.fixture(scope="module")
def llm(checkpoint: tuple[Path, PreTrainedModel]) -> Iterator[LLM]:
    llm = LLM(str(checkpoint[0]), device="cpu", dtype="float32", max_model_len=512, cpu_threads=1, image_processes=1,
              image_memory_bytes=3 * ROWS)
    yield llm
    directory = llm._images._loader.files.directory  # type: ignore[union-attr]
    assert not [name for name in os.listdir(directory) if not name.startswith(".")]
    llm.close()
    assert not os.path.exists(directory)


def beside(image: Any, prompt: str = PROMPT) -> Any:
    return {"prompt": prompt, "multi_modal_data": {"image": image}}


def chances(output: Any) -> list[float]:
    return [next(iter(one.values())).logprob for one in output.outputs[0].logprobs]


def test_what_is_seen_is_what_transformers_sees(llm: LLM, checkpoint: tuple[Path, PreTrainedModel]) -> None:
    path, model = checkpoint
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    images = [picture(70, 40), WHITE]
    processed = [processor(images=[image], return_tensors="pt") for image in images]
    seen = [Picture(tuple(one["image_grid_thw"][0].tolist()), one["pixel_values"]) for one in processed]
    [output] = llm.generate(beside(images, PROMPT.replace(PLACE, PLACE + " and " + PLACE)), GREEDY, use_tqdm=False)
    ids = list(output.prompt_token_ids)
    assert ids.count(tiny_vision.IMAGE) == sum(one.num_tokens for one in seen)
    for token, chance in zip(output.outputs[0].token_ids, chances(output)):
        expected = tiny_vision.logits(model, ids, seen)[-1]
        assert chance == pytest.approx(float(torch.log_softmax(expected, -1)[token]), abs=1e-3)
        ids.append(token)


def test_every_form_of_an_image_is_the_same(llm: LLM) -> None:
    forms: list[Any] = [RED, [RED], np.asarray(RED), RED.convert("RGBA"), [np.asarray(RED)]]
    by_prompt = llm.generate([beside(form) for form in forms], GREEDY, use_tqdm=False)
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url_of(file_of(RED))}},
                        {"type": "image_url", "image_url": url_of(file_of(RED))},
                        {"type": "image_pil", "image_pil": RED}]
    by_message = llm.chat([[{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
                           for part in parts], GREEDY, use_tqdm=False)
    assert all(output.prompt == PROMPT for output in (*by_prompt, *by_message))
    expected = chances(by_prompt[0])
    assert all(chances(output) == pytest.approx(expected, abs=1e-4) for output in (*by_prompt, *by_message))
    [other] = llm.generate(beside(WHITE), GREEDY, use_tqdm=False)
    assert chances(other) != pytest.approx(expected, abs=1e-3)


def test_more_images_than_have_room_come_in_batches(llm: LLM) -> None:
    images = [Image.new("RGB", (56, 56), (i, 0, 0)) for i in range(0, 250, 25)]
    prompts: list[Any] = [beside(image) for image in images]
    prompts.insert(3, "Hello")
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == [PROMPT] * 3 + ["Hello"] + [PROMPT] * 7
    [alone] = llm.generate(prompts[7], GREEDY, use_tqdm=False)
    assert chances(outputs[7]) == pytest.approx(chances(alone), abs=1e-4)


def test_the_documents_program_with_a_placeholder_and_no_image_runs_and_says_so(llm: LLM) -> None:
    """A prompt made by a processor, of which the image never reaches the engine."""
    with pytest.warns(UserWarning, match="has a placeholder for an image, and no image came with it"):
        outputs = llm.generate(PROMPT, SamplingParams(max_tokens=4, temperature=1, top_p=1, stop_token_ids=[151329]))
    assert outputs[0].prompt == PROMPT and outputs[0].outputs[0].finish_reason


@pytest.mark.parametrize(("prompt", "said"), [
    (beside(RED, "no place"), "has 0 placeholders for images .* and 1 image came"),
    (beside([RED, RED]), "has 1 placeholder for images .* and 2 images came"),
    (beside("a.png"), "must be one of Pillow's, or an array"), (beside(np.zeros((4, 4, 7))), "got ndarray of float64"),
    ({"prompt": PROMPT, "multi_modal_data": {"video": RED}}, r"holds \['video'\]; this version takes 'image' only"),
    ({"prompt": PROMPT, "multi_modal_data": [RED]}, "multi_modal_data must be a dict"),
    ({"prompt": PROMPT, "multi_modal_uuids": {"image": ["a"]}}, "which this version does not take"),
    ({**beside(RED), "mm_processor_kwargs": {"fps": 1}}, "may hold min_pixels, max_pixels, size"),
    ({**beside(RED), "mm_processor_kwargs": {"max_pixels": 10**7}}, "sees at most"),
    (beside(Image.new("L", (400, 1))), "one side may be at most 200 times"),
    (beside(picture(560, 280)), "all images together may take"),
])
def test_what_cannot_be_served_is_said(llm: LLM, prompt: Any, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        llm.generate(prompt, GREEDY, use_tqdm=False)
    assert llm.generate("Hello", GREEDY, use_tqdm=False)


def test_a_part_without_its_image_is_named(llm: LLM) -> None:
    for part, said in (({"type": "image_url"}, r"content'\]\[0\].image_url must be a URL"),
                       ({"type": "image"}, "image must be an image"),
                       ({"type": "video_url", "video_url": ""}, "'video_url'"),
                       ({"type": "image_url", "image_url": "file:///etc/passwd"}, "reads no files"),
                       ({"type": "image_url", "image_url": url_of(b"x")}, "no image that can be read")):
        with pytest.raises(InvalidRequestError, match=said):
            llm.chat([{"role": "user", "content": [part]}], GREEDY, use_tqdm=False)


def test_limits_of_settings_are_checked_at_the_start() -> None:
    from quire.engine.config import EngineArgs

    problems = EngineArgs(limit_mm_per_prompt={"picture": 1}, mm_processor_kwargs={"max_pixels": 0},
                          allowed_local_media_path="/no/such/place", image_fetch_timeout=0,
                          allowed_media_domains=["cdn.example", "https://cdn.example", "*.example"]).problems()
    assert [problem.split(":")[0] for problem in problems] == [
        "--limit-mm-per-prompt", "--mm-processor-kwargs", "--allowed-media-domains", "--image-fetch-timeout",
        "--allowed-local-media-path"]
