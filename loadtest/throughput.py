"""`quire bench throughput`: how fast the engine works off a workload, offline and warm, beside what others did.

Random token ids, temperature 1, eos ignored; a model directory with nothing but a config.json will do (dummy weights).
Figures per workload: s (all of it), out_tok_s, total_tok_s, and for `single`
and `batch4` to `batch64` (so many alike) ttft_ms and tpot_ms.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from quire import LLM, SamplingParams
from quire.engine.errors import ConfigError
from quire.loadtest import workloads
from quire.loadtest.arguments import add_engine_flags, count, engine_flags, offline_parser, writable

NUM_TTFT_PROBES = 5
MOST_IN_STEP = 64  # alike requests that decode side by side: their time a token is told
FIGURES = ("s", "out_tok_s", "total_tok_s", "ttft_ms", "tpot_ms")
LESS_IS_BETTER = ("s", "ttft_ms", "tpot_ms")


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    names = list(workloads.load()) if args.workload == "all" else args.workload.split(",")
    unknown = sorted(set(names) - set(workloads.load()))
    if unknown:
        parser.error(f"--workload: no {', '.join(map(repr, unknown))}; there are {', '.join(workloads.load())} and all")
    peers = _peers(args.compare, args.peer_shape or Path(args.model).name) if args.compare else {}

    begin = time.perf_counter()
    llm = LLM(model=args.model, load_format=args.load_format, skip_tokenizer_init=True, **engine_flags(args))
    startup_s = round(time.perf_counter() - begin, 1)
    results: dict[str, Any] = {"model": args.model, "device": llm.info.device, "dtype": llm.info.dtype,
                               "startup_s": startup_s}
    _warm_up(llm)
    print(f"{args.model}: {llm.info.dtype} on {llm.info.device}, started in {startup_s} s", flush=True)
    for name in names:
        results[name] = _measure(llm, name, args.num_requests)
        print(_line(name, results[name], peers), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = offline_parser("throughput", __doc__)
    parser.add_argument("--workload", default="all", help="names joined by commas, or all")
    parser.add_argument("--num-requests", type=count, help="only the first N requests of each workload")
    parser.add_argument("--compare", metavar="FILE", help="recorded figures, such as loadtest/peers/h200.json")
    parser.add_argument("--peer-shape", help="the model's name in that file; the directory's name if unset")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write the results here too")
    add_engine_flags(parser)
    return parser


def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=max_tokens, detokenize=False)


def _random_prompt(seed: int, length: int, vocab_size: int) -> list[int]:
    """Never a workload's own prompt: a cached prefix would be measured instead."""
    rng = random.Random(f"probe {seed}")
    return [rng.randrange(workloads.LOWEST_ID, workloads.top_id(vocab_size)) for _ in range(length)]


def _warm_up(llm: LLM) -> None:
    vocab_size = llm.info.vocab_size
    for batch in (1, min(64, llm.info.max_num_seqs)):
        ids = [_random_prompt(1000 + i, 64, vocab_size) for i in range(batch)]
        llm.generate(list(ids), _params(8), use_tqdm=False)


def _measure(llm: LLM, name: str, num_requests: int | None) -> dict[str, float]:
    ids, output_lens = workloads.prompts(name, llm.info.vocab_size, num_requests)
    begin = time.perf_counter()
    outputs = llm.generate(list(ids), [_params(n) for n in output_lens], use_tqdm=sys.stderr.isatty())
    seconds = time.perf_counter() - begin
    got = [len(output.outputs[0].token_ids) for output in outputs]
    assert got == output_lens, f"{name}: outputs are not as long as asked"
    num_output = sum(got)
    result = {"s": round(seconds, 3), "out_tok_s": round(num_output / seconds, 1),
              "total_tok_s": round((num_output + sum(map(len, ids))) / seconds, 1)}
    lengths = {(len(prompt), length) for prompt, length in zip(ids, output_lens, strict=True)}
    if len(ids) <= MOST_IN_STEP and len(lengths) == 1:
        ttft_s = _ttft_s(llm, len(ids), len(ids[0]))
        result["ttft_ms"] = round(ttft_s * 1e3, 2)
        if output_lens[0] > 1:
            result["tpot_ms"] = round((seconds - ttft_s) / (output_lens[0] - 1) * 1e3, 3)
    return result


def _ttft_s(llm: LLM, count: int, prompt_len: int) -> float:
    """Seconds from so many prompts of this length to the first token of all: the median of a few."""
    times = []
    for probe in range(NUM_TTFT_PROBES):
        ids = [_random_prompt(probe * count + place, prompt_len, llm.info.vocab_size) for place in range(count)]
        begin = time.perf_counter()
        llm.generate(list(ids), _params(1), use_tqdm=False)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _peers(file: str, shape: str) -> dict[str, dict[str, Any]]:
    """{engine: its figures for this model shape}."""
    try:
        recorded = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--compare: {file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--compare: {file} is not JSON: {error}") from None
    found = {engine: shapes[shape] for engine, shapes in (recorded.items() if isinstance(recorded, dict) else ())
             if isinstance(shapes, dict) and isinstance(shapes.get(shape), dict) and "startup_s" in shapes[shape]}
    if not found:
        raise ConfigError(f"--compare: {file} has nothing on {shape!r}; name one of its shapes with --peer-shape")
    return found


def _line(name: str, result: dict[str, float], peers: dict[str, dict[str, Any]]) -> str:
    """One workload's figures; each peer's follow, with how many times faster we were."""
    parts = [f"{name:10}" + "  ".join(f"{figure} {result[figure]:g}" for figure in FIGURES if figure in result)]
    for engine, figures in peers.items():
        theirs = figures.get(name)
        if isinstance(theirs, dict):
            parts.append(f"{'':10}{engine}: " + "  ".join(
                f"{figure} {theirs[figure]:g} ({_times_faster(figure, result[figure], theirs[figure]):.2f}x)"
                for figure in FIGURES if isinstance(theirs.get(figure), (int, float)) and figure in result))
    return "\n".join(parts)


def _times_faster(figure: str, ours: float, theirs: float) -> float:
    return theirs / ours if figure in LESS_IS_BETTER else ours / theirs
