"""`quire bench features`: what each way to decode costs a step, at several batch sizes, beside plain sampling.

Offline and warm, on random prompts; a model directory with a config.json and a tokenizer will do (dummy weights). All
rows of a batch use the feature, each with values of its own; `one row` has one such row among plain ones, and beams
are rows of a quarter of the requests. Milliseconds a step: the time of a long run less that of a short one, by the
steps between. Plain sampling is measured before and after each feature, which is compared with the median of the two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from quire import LLM, SamplingParams
from quire.loadtest import workloads
from quire.loadtest.arguments import add_engine_flags, count, engine_flags, offline_parser, writable

PROMPT_LEN = 32
SHORT, LONG = 8, 72  # new tokens
NUM_BEAMS = 4

Make = Callable[[int], dict[str, Any]]  # a row's number -> fields of SamplingParams


def _schema(row: int, **string: Any) -> dict[str, Any]:
    """One that no other row has, and that no output of these lengths completes."""
    properties = {f"name_{row}": {"type": "string", **string}, f"count_{row}": {"type": "integer"},
                  "kind": {"enum": [f"kind {row} {i}" for i in range(5)]},
                  "inner": {"type": "object", "properties": {f"part_{row % 11}": {"type": ["number", "null"]}},
                            "required": [f"part_{row % 11}"], "additionalProperties": False}}
    return {"type": "array", "minItems": 1000, "items": {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}}


def _biases(row: int) -> dict[int, float]:
    return {2000 + 7 * i + row: (-1) ** i * 2.0 for i in range(300)}


FEATURES: dict[str, Make] = {
    "greedy": lambda row: {"temperature": 0.0},
    "top_p, top_k, min_p": lambda row: {"top_p": 0.9, "top_k": 50, "min_p": 0.01},
    "penalties": lambda row: {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    "logit_bias, 300 ids": lambda row: {"logit_bias": _biases(row)},
    "bad_words, 20": lambda row: {"bad_words": [f"word {row} {i}" for i in range(20)]},
    "allowed_token_ids, 1000": lambda row: {"allowed_token_ids": list(range(1000 + row, 2000 + row))},
    "min_tokens": lambda row: {"min_tokens": LONG, "stop_token_ids": [1001 + row], "max_tokens": LONG},
    "logprobs 1": lambda row: {"logprobs": 1},
    "logprobs 20": lambda row: {"logprobs": 20},
    "a JSON schema each": lambda row: {"structured_outputs": {"json": _schema(row)}},
    "a JSON schema each, with maxLength": lambda row: {
        "structured_outputs": {"json": _schema(row, maxLength=20 + row % 7)}},
    "one regex": lambda row: {"structured_outputs": {"regex": "([a-z]{3,12} ){1000}"}},
}
FEATURES["penalties, bias, logprobs 5, schema"] = lambda row: {
    **FEATURES["penalties"](row), **FEATURES["logit_bias, 300 ids"](row), "logprobs": 5,
    **FEATURES["a JSON schema each"](row)}
FEATURES["beams of 4"] = lambda row: {"use_beam_search": True, "n": NUM_BEAMS, "temperature": 0.0}
ONE_ROW = ("penalties", "logprobs 20", "a JSON schema each")  # beside plain rows


def main(argv: list[str]) -> int:
    args = _parse(argv)
    llm = LLM(model=args.model, tokenizer=args.tokenizer, load_format=args.load_format,
              **engine_flags(args))
    print(f"{args.model}: {llm.info.dtype} on {llm.info.device}", flush=True)
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for size in args.batch:
        for name, rows in _cases(size, args.feature).items():
            plain, cost = _beside_plain(llm, size, rows, args.rounds)
            found.setdefault(name, {})[size] = plain, cost
            print(f"{size:5} rows, {name}: {cost:.3f} ms a step, plain {plain:.3f} ({cost / plain:.3f})", flush=True)
    lines = table(found, args.batch)
    print("\n".join(lines), flush=True)
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def table(found: dict[str, dict[int, tuple[float, float]]], sizes: list[int]) -> list[str]:
    """Markdown: ms a step and the ratio to plain sampling beside it, of each feature at each batch size."""
    rows = [f"| feature | {' | '.join(f'{size} rows' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for name, by_size in found.items():
        cells = [f"{by_size[size][1]:.3f} ({by_size[size][1] / by_size[size][0]:.3f})" if size in by_size else ""
                 for size in sizes]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _cases(size: int, wanted: list[str]) -> dict[str, list[dict[str, Any]]]:
    cases = {name: [make(row) for row in range(size)] for name, make in FEATURES.items()}
    cases["beams of 4"] = cases["beams of 4"][:size // NUM_BEAMS]
    if size > 1:
        cases |= {f"one row: {name}": [FEATURES[name](0)] + [{}] * (size - 1) for name in ONE_ROW}
    return {name: rows for name, rows in cases.items()
            if rows and (not wanted or name.removeprefix("one row: ") in wanted)}


def _beside_plain(llm: LLM, size: int, rows: list[dict[str, Any]], rounds: int) -> tuple[float, float]:
    """ms a step of `size` plain rows, and of these."""
    plain: list[dict[str, Any]] = [{}] * size
    _seconds(llm, rows, SHORT)  # compiles its grammars
    befores, costs, afters = zip(*((_step_ms(llm, plain), _step_ms(llm, rows), _step_ms(llm, plain))
                                   for _ in range(rounds)))
    return statistics.median([*befores, *afters]), statistics.median(costs)


def _step_ms(llm: LLM, rows: list[dict[str, Any]]) -> float:
    short, long = _seconds(llm, rows, SHORT), _seconds(llm, rows, LONG)
    return (long - short) / (LONG - SHORT) * 1e3


def _seconds(llm: LLM, rows: list[dict[str, Any]], num_tokens: int) -> float:
    lowest, top = workloads.LOWEST_ID, workloads.top_id(llm.info.vocab_size)
    prompts = [[lowest + (row * 7919 + i * 104729) % (top - lowest) for i in range(PROMPT_LEN)]
               for row in range(len(rows))]
    common: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True, "detokenize": False}
    params = [SamplingParams(**{**common, **fields, "max_tokens": num_tokens,
                                "min_tokens": min(fields.get("min_tokens", 0), num_tokens)}) for fields in rows]
    begin = time.perf_counter()
    outputs = llm.generate(list(prompts), params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    lengths = {len(output.outputs[0].token_ids) for output in outputs}
    reasons = {output.outputs[0].finish_reason for output in outputs}
    assert lengths == {num_tokens}, f"outputs of {lengths} tokens ({reasons}), not {num_tokens}"
    return seconds


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = offline_parser("features", __doc__)
    parser.add_argument("--tokenizer", help="directory of one, where the model has none; grammars need it")
    parser.add_argument("--batch", type=lambda text: [count(part) for part in text.split(",")], default=[1, 64, 256],
                        metavar="N,N,...", help="rows at once; a CPU takes hours for all of them [1,64,256]")
    parser.add_argument("--feature", action="append", default=[], choices=list(FEATURES), metavar="NAME",
                        help="only this one; several are taken: " + "; ".join(FEATURES))
    parser.add_argument("--rounds", type=count, default=1, metavar="N",
                        help="measurements of each, of which the median is told [%(default)s]")
    parser.add_argument("--markdown", type=writable, metavar="FILE", help="write the table here too")
    add_engine_flags(parser)
    return parser.parse_args(argv)
