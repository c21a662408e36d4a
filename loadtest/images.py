"""`quire bench images`: what images cost, offline and warm: how many a second, how long until the first token, and how
much longer text requests wait for their tokens beside them.

Random pixels and weights; a model directory with a config.json will do. Of each size of picture:

- lone: milliseconds from a lone request (one image, 32 tokens of text) to its first token; `kept` with an image whose
  features the engine still has; `text` with as many tokens of text instead.
- all at once: such requests with 16 tokens of output each, images a second; `text` again beside it.
- beside: text streams decode, first alone, then while image requests keep coming; milliseconds from one token to the
  next, the median and the 99th percentile of both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from quire.engine.assembly import assemble
from quire.engine.config import EngineArgs
from quire.engine.core import EngineCore
from quire.engine.errors import ConfigError
from quire.engine.messages import Media, Rejected, SampleSpec, Sampling, Submit
from quire.engine.model_facts.vision import Grid, VisionFacts
from quire.loadtest import workloads
from quire.loadtest.arguments import add_engine_flags, count, engine_flags, offline_parser, writable
from quire.loadtest.report.measured import percentile

TEXT_TOKENS, OUTPUT_TOKENS = 32, 16
NUM_PROBES = 5
OWNER = "bench"


class Client:
    """Submits requests to a core in this process, drives it, and notes when each token came."""

    def __init__(self, core: EngineCore, vision: VisionFacts, folder: Path) -> None:
        self.core = core
        self.vision = vision
        self._folder = folder
        self._files: dict[Grid, Path] = {}  # the same pixels under every digest: they are encoded each time
        self._rng = random.Random(0)
        self._num_images = 0
        self.submitted: list[float] = []  # by id
        self.times: defaultdict[int, list[float]] = defaultdict(list)

    def grid(self, height: int, width: int) -> Grid:
        """In patches, of a picture of so many pixels as processors round it."""
        token = self.vision.patch_size * self.vision.merge_size
        rows, columns = (max(1, round(side / token)) * self.vision.merge_size for side in (height, width))
        return 1, rows, columns

    def image(self, grid: Grid) -> Media:
        """One that the engine has not seen, in front of the prompt's text."""
        self._num_images += 1
        if grid not in self._files:
            import numpy as np  # not needed to tell how the command is called

            file = self._files[grid] = self._folder / "x".join(map(str, grid))
            shape = grid[1] * grid[2], self.vision.patch_values
            file.write_bytes(np.random.default_rng(0).standard_normal(shape, np.float32).tobytes())
        return Media(self._num_images.to_bytes(8, "big"), 1, self.vision.num_tokens(grid), grid, str(self._files[grid]))

    def submit(self, num_text: int, max_tokens: int, image: Media | None = None) -> int:
        """A prompt that begins like no other, so that no prefix of it is cached. Its id."""
        top = workloads.top_id(self.core.info.vocab_size)
        ids = [self._rng.randrange(workloads.LOWEST_ID, top) for _ in range(num_text)]
        if image is not None:
            ids[1:1] = [self.vision.image_token_id] * image.num_tokens
        id = len(self.submitted)
        answer = self.core.submit(OWNER, Submit(
            self.core.info.instance, str(id), ids, Sampling(max_tokens=max_tokens), [SampleSpec(id, id)],
            media=[] if image is None else [image]))
        if isinstance(answer, Rejected):
            raise ConfigError(answer.message)
        self.submitted.append(time.perf_counter())
        return id

    def run(self, before_step: Callable[[], None] = lambda: None) -> None:
        while self.core.has_work:
            before_step()
            for _, delta in self.core.step():
                self.times[delta.id] += [time.perf_counter()] * len(delta.token_ids)

    def ttft_ms(self, id: int) -> float:
        return (self.times[id][0] - self.submitted[id]) * 1e3

    def gaps_ms(self, ids: list[int]) -> list[float]:
        return [(b - a) * 1e3 for id in ids for a, b in zip(self.times[id], self.times[id][1:])]


def lone(client: Client, grid: Grid) -> dict[str, float]:
    """Medians of a few, in ms."""
    num_tokens = client.vision.num_tokens(grid)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(NUM_PROBES + 1):  # the first warms up
        image = client.image(grid)
        for name, submit in (("ttft_ms", lambda image=image: client.submit(TEXT_TOKENS, 1, image)),
                             ("kept_ttft_ms", lambda image=image: client.submit(TEXT_TOKENS, 1, image)),
                             ("text_ttft_ms", lambda: client.submit(TEXT_TOKENS + num_tokens, 1))):
            id = submit()
            client.run()
            found[name].append(client.ttft_ms(id))
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def all_at_once(client: Client, grid: Grid, num_requests: int) -> dict[str, float]:
    def seconds(submit: Callable[[], int]) -> float:
        begin = time.perf_counter()
        for _ in range(num_requests):
            submit()
        client.run()
        return time.perf_counter() - begin

    num_tokens = client.vision.num_tokens(grid)
    with_images = seconds(lambda: client.submit(TEXT_TOKENS, OUTPUT_TOKENS, client.image(grid)))
    text = seconds(lambda: client.submit(TEXT_TOKENS + num_tokens, OUTPUT_TOKENS))
    return {"images_s": num_requests / with_images, "text_requests_s": num_requests / text,
            "total_tok_s": num_requests * (TEXT_TOKENS + num_tokens + OUTPUT_TOKENS) / with_images}


def beside(client: Client, grid: Grid, num_streams: int, stream_tokens: int, interval_s: float) -> dict[str, float]:
    """An image request every `interval_s`, as long as the streams last."""
    found: dict[str, float] = {}
    for name in ("alone", "beside"):
        streams = [client.submit(TEXT_TOKENS, stream_tokens) for _ in range(num_streams)]
        images: list[int] = []
        due = time.perf_counter()

        def send(streams: list[int] = streams, images: list[int] = images) -> None:
            nonlocal due
            lasts = any(len(client.times[id]) < stream_tokens for id in streams)
            if lasts and time.perf_counter() >= due:
                due += interval_s
                images.append(client.submit(TEXT_TOKENS, OUTPUT_TOKENS, client.image(grid)))

        client.run(send if name == "beside" else lambda: None)
        gaps = client.gaps_ms(streams)
        found |= {f"{name}_p50_ms": statistics.median(gaps), f"{name}_p99_ms": percentile(gaps, 0.99)}
        if images:
            found |= {"images": len(images), "image_ttft_ms": statistics.median(map(client.ttft_ms, images))}
    return found


def table(results: dict[str, dict[str, float]]) -> list[str]:
    """Markdown, a row a size."""
    columns = list(next(iter(results.values())))
    lines = [f"| picture | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(f'{found[column]:.4g}' for column in columns)} |"
                    for name, found in results.items()]


def main(argv: list[str]) -> int:
    args = _parse(argv)
    core = assemble(EngineArgs(model=args.model, load_format=args.load_format, skip_tokenizer_init=True,
                               **engine_flags(args)), lambda *_: None)
    vision = core.config.model.vision
    if vision is None:
        raise ConfigError(f"--model: {args.model} takes no images")
    print(f"{args.model}: {core.info.dtype} on {core.info.device}", flush=True)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        client = Client(core, vision, Path(folder))
        for height, width in args.size:
            grid = client.grid(height, width)
            found = {"tokens": float(vision.num_tokens(grid)), **lone(client, grid),
                     **all_at_once(client, grid, args.num_requests),
                     **beside(client, grid, args.num_streams, args.stream_tokens, args.interval_ms / 1e3)}
            results[f"{width} x {height}"] = found
            print("  ".join([f"{width} x {height}:", *(f"{name} {value:.4g}" for name, value in found.items())]),
                  flush=True)
    core.close()
    print("\n".join(table(results)), flush=True)
    for file in _files(args):
        file.write_text(json.dumps({"model": args.model, "device": core.info.device, "dtype": core.info.dtype,
                                    "pictures": results}, indent=1) + "\n", encoding="utf-8")
    return 0


def _files(args: argparse.Namespace) -> list[Path]:
    """--json, and in the folder that the variable OUT names."""
    found = [] if args.json is None else [args.json]
    return found + ([Path(os.environ["OUT"]) / f"images-{Path(args.model).name}.json"] if os.environ.get("OUT") else [])


def _size(text: str) -> tuple[int, int]:
    """Height and width of "640x480", a width and a height; for argparse."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 640x480")
    return int(height), int(width)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = offline_parser("images", __doc__)
    parser.add_argument("--size", type=lambda text: [_size(part) for part in text.split(",")],
                        default=[(480, 640), (1080, 1920)], metavar="WxH,...", help="of pictures [640x480,1920x1080]")
    parser.add_argument("--num-requests", type=count, default=128, metavar="N", help="all at once [%(default)s]")
    parser.add_argument("--num-streams", type=count, default=32, metavar="N", help="text streams [%(default)s]")
    parser.add_argument("--stream-tokens", type=count, default=512, metavar="N", help="tokens of each [%(default)s]")
    parser.add_argument("--interval-ms", type=count, default=100, metavar="N",
                        help="between two image requests beside them [%(default)s]")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write the results here too")
    add_engine_flags(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
