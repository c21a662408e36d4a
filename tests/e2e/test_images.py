"""Images over HTTP: a real server with a tiny model that sees, its processes killed, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from PIL import Image

from tests.e2e.browser import CHROMIUM, DRIVER, ENTER, browsing
from tests.e2e.server import KEY, Server, alive, serving, until
from tests.engine.frontend.media import pictures
from tests.engine.frontend.media.pictures import file_of, picture, url_of
from tests.engine.models import seeing

RED, OTHER = (url_of(file_of(Image.new("RGB", (56, 56), color))) for color in ("red", "white"))
TOKENS = 4  # of either
QUESTION = {"type": "text", "text": "What is the text in the picture?"}


def part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeing")
    seeing.write(path)
    return path


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    local = tmp_path_factory.mktemp("local")
    (local / "red.png").write_bytes(file_of(Image.new("RGB", (56, 56), "red")))
    with serving("--model", str(checkpoint), "--served-model-name", "sees", "--max-model-len", "512",
                 "--api-server-count", "1", "--image-processes", "1", "--limit-mm-per-prompt", '{"image": 3}',
                 "--allowed-local-media-path", str(local), "--max-image-pixels", str(pictures.MAX_PIXELS),
                 "--max-image-bytes", str(pictures.MAX_BYTES)) as server:
        server.local = local  # type: ignore[attr-defined]
        yield server


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, headers={"authorization": f"Bearer {KEY}", "anthropic-version": "2023-06-01"},
                      timeout=60, json={"model": "sees", **body})


def chat(server: Server, *parts: Any, **body: Any) -> dict[str, Any]:
    reply = post(server, "/v1/chat/completions", messages=user(*parts), **{
        "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 5, **body})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def chances(reply: dict[str, Any]) -> list[float]:
    return [one["logprob"] for one in reply["choices"][0]["logprobs"]["content"]]


def directories() -> list[Path]:
    """Of workers, for pixel values."""
    return [path for path in Path("/dev/shm").glob("quire-*") if path.is_dir()]


def files_of(server: Server) -> list[str]:
    """Pixel values in the shared memory of its workers."""
    found = []
    for pid in server.pids()["workers"]:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since the list was made
                target = os.readlink(link)
                if target.startswith("/dev/shm/quire-"):
                    found += [name for name in os.listdir(os.path.dirname(target)) if not name.startswith(".")]
    return found


def image_processes(server: Server) -> list[int]:
    workers = server.pids()["workers"]
    children = [int(child) for pid in workers for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()]
    return [pid for pid in children if "media.process" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_the_sdks_program_is_answered_streamed_or_not_and_images_count_as_tokens(server: Server) -> None:
    with server.client() as client:
        request: Any = {"model": "sees", "max_tokens": 8, "temperature": 0, "messages": [
            {"role": "system", "content": "You help."}, *user(part(RED), QUESTION)]}
        whole = client.chat.completions.create(**request)
        chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert streamed == whole.choices[0].message.content and whole.choices[0].finish_reason == "length"
        assert whole.usage and chunks[-1].usage and whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens
        counted = post(server, "/tokenize", messages=request["messages"]).json()
        assert whole.usage.prompt_tokens == counted["count"]
        without = post(server, "/tokenize", messages=[request["messages"][0], *user(QUESTION)]).json()
        assert counted["count"] == without["count"] + TOKENS + 2


def test_all_apis_and_forms_of_an_image_are_the_same_prompt(server: Server) -> None:
    local = f"file://{server.local}/red.png"  # type: ignore[attr-defined]
    plain = chat(server, part(RED), QUESTION)
    others = [chat(server, part(RED, detail="high"), QUESTION), chat(server, part(local), QUESTION),
              chat(server, {"type": "image_url", "image_url": RED}, QUESTION),
              chat(server, {"image_url": {"url": RED}}, QUESTION),
              chat(server, part(RED), QUESTION, mm_processor_kwargs={"max_pixels": 100_000})]
    assert [chances(other) for other in others] == [pytest.approx(chances(plain), abs=1e-5)] * len(others)
    text = plain["choices"][0]["message"]["content"]
    response = post(server, "/v1/responses", max_output_tokens=6, temperature=0, input=user(
        {"type": "input_image", "image_url": RED, "detail": "auto"}, {**QUESTION, "type": "input_text"})).json()
    assert "output" in response, response
    assert response["output"][0]["content"][0]["text"] == text
    assert response["usage"]["input_tokens"] == plain["usage"]["prompt_tokens"]
    media_type, data = RED[5:].split(";base64,")
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        image: Any = {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
        message = client.messages.create(model="sees", max_tokens=6, messages=user(image, QUESTION))
        assert message.content[0].text == text  # type: ignore[union-attr]
        counted = client.messages.count_tokens(model="sees", messages=user(image, QUESTION))
    assert counted.input_tokens == plain["usage"]["prompt_tokens"]


def test_what_is_seen_depends_on_the_images_and_on_their_order(server: Server) -> None:
    asked = [(RED,), (OTHER,), (RED, OTHER), (OTHER, RED), (RED, RED)]
    seen = [chances(chat(server, *map(part, urls), QUESTION)) for urls in asked]
    assert len({tuple(round(chance, 3) for chance in one) for one in seen}) == len(asked)
    again = chat(server, part(RED), part(OTHER), QUESTION)
    assert chances(again) == pytest.approx(seen[2], abs=1e-4)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize(("parts", "param", "said"), [
    ([part("ftp://x/")], "messages[0].content[0]", "must begin with https:"),
    ([QUESTION, part("http://127.0.0.1/x.png")], "messages[0].content[1]", "--allowed-media-domains"),
    ([part("data:image/png;base64,AAAA")], "messages[0].content[0]", "no image that can be read as PNG"),
    ([part(RED)] * 4, "messages[0].content[3]", "has 4 images; at most 3 are taken (--limit-mm-per-prompt)"),
    ([part(RED, detail="huge")], "messages[0].content[0].image_url.detail", "must be one of auto, high"),
    ([{"type": "image_url"}], "messages[0].content[0].image_url", "must be a URL, or an object with 'url'"),
    ([part(RED, quality=3)], "messages[0].content[0].image_url.quality", "There is no request field"),
    ([{"type": "video_url", "video_url": {"url": RED}}], "messages[0].content[0]", "text and images; parts of type"),
    ([{"type": "text", "text": "x" * 450}, part(url_of(file_of(picture(560, 280))))], "prompt",
     "images take 200 of the prompt's tokens"),
])
def test_what_is_wrong_with_an_image_is_said_of_its_part(server: Server, parts: list[Any], param: str, said: str
                                                         ) -> None:
    reply = post(server, "/v1/chat/completions", messages=user(*parts))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param) and said in error["message"]


def test_roles_without_images_and_text_that_spells_a_placeholder(server: Server) -> None:
    reply = post(server, "/v1/chat/completions", messages=[{"role": "system", "content": [part(RED)]}, *user(QUESTION)])
    assert reply.status_code == 400 and "messages of the user's" in reply.json()["error"]["message"]
    spelled = [{"type": "text", "text": "<|image_pad|><|vision_start|>"}, part(RED)]
    assert chat(server, *spelled)["usage"]["completion_tokens"] == 6
    for prompt in ("<|vision_start|><|image_pad|><|vision_end|>", [1002, 1002]):  # an image that is not there
        assert post(server, "/v1/completions", prompt=prompt, max_tokens=2).status_code == 200


@pytest.mark.slow
def test_a_hostile_corpus_leaves_neither_files_nor_memory(server: Server) -> None:
    pids = [*server.pids()["workers"], *server.pids()["engine"], *image_processes(server)]

    def throw() -> None:
        images = [part(url_of(data)) for data, _ in pictures.corpus().values()]
        images += [part(url) for url, _ in pictures.URLS.values()]
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda image: post(server, "/v1/chat/completions", messages=user(image),
                                                        max_tokens=1), images))
        assert {reply.status_code for reply in found} == {200, 400}

    throw()
    before = [resident(pid) for pid in pids]
    throw()
    assert [resident(pid) for pid in pids] <= [bytes + 48 * 2**20 for bytes in before]
    until(lambda: not files_of(server))


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_clients_that_leave_in_the_middle_leave_no_files(server: Server) -> None:
    body = {"model": "sees", "messages": user(part(RED), part(OTHER), QUESTION), "max_tokens": 300, "stream": True}
    for pause in (0.0, 0.02, 0.2):
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=10,
                          headers={"authorization": f"Bearer {KEY}"}) as reply:
            next(reply.iter_lines())
            time.sleep(pause)
    until(lambda: not files_of(server))


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")
def test_the_console_takes_a_picture_shows_it_and_sends_it(server: Server) -> None:
    _, data = RED.split(",")
    with browsing() as browser:
        browser.look(1200, 800)
        browser.open(f"{server.url}/")
        browser.run("sessionStorage.setItem('quire-key', arguments[0])", KEY)
        browser.reload()
        browser.wait("#status", "Ready", timeout_s=60)
        until(lambda: not browser.run("return document.getElementById('add-picture').hidden"))
        browser.run("""
            const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0)), data = new DataTransfer();
            data.items.add(new File([bytes], 'red.png', {type: 'image/png'}));
            const input = document.getElementById('picture-file');
            input.files = data.files;
            input.dispatchEvent(new Event('change'));""", data)
        until(lambda: browser.run("return document.querySelector('#pictures canvas')?.width") == 56)
        browser.run("document.getElementById('max-tokens').value = 6; document.getElementById('temperature').value = 0")
        browser.type("#question", QUESTION["text"] + ENTER)
        expected = chat(server, part(RED), QUESTION)["usage"]["prompt_tokens"]
        browser.wait(".answer:last-child .facts", f"prompt {expected}")
        pixel = "return [...document.querySelector('.question canvas').getContext('2d').getImageData(9, 9, 1, 1).data]"
        assert browser.run(pixel) == [255, 0, 0, 255]


@pytest.mark.slow
def test_a_stream_with_images_goes_on_after_the_engines_death(server: Server) -> None:
    undisturbed = chat(server, part(RED), part(OTHER), QUESTION, max_tokens=200)["choices"][0]["message"]["content"]
    body = {"model": "sees", "messages": user(part(RED), part(OTHER), QUESTION), "max_tokens": 200, "stream": True,
            "temperature": 0}
    text = ""
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60,
                      headers={"authorization": f"Bearer {KEY}"}) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                before = len(text)
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                if before < 20 <= len(text):
                    [engine] = server.pids()["engine"]
                    os.kill(engine, signal.SIGKILL)
    assert text == undisturbed
    until(lambda: not files_of(server))


@pytest.mark.slow
def test_a_killed_worker_takes_its_image_processes_and_its_successor_its_files(server: Server) -> None:
    chat(server, part(RED))
    [worker], processes, before = server.pids()["workers"], image_processes(server), directories()
    assert processes
    os.kill(worker, signal.SIGKILL)
    until(lambda: server.pids()["workers"] not in ([worker], []) and not any(map(alive, processes)))
    until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200)
    chat(server, part(RED))
    assert len(directories()) <= len(before)
