"""`quire bench steps`: where the time of a step goes, on the host and on the device.

Runs a workload offline and warm, and prints of its steps the median, mean and longest milliseconds of each part of the
host's work (`rest` is what the front end does between two steps), and of `--profiled` steps in the middle what each
kernel takes of a step on a GPU. As a file, it also runs against another checkout:
`PYTHONPATH=OTHER python loadtest/step_times.py --model DIR`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from quire import LLM, SamplingParams
from quire.engine.core import EngineCore
from quire.engine.execution.model_runner import ModelRunner
from quire.engine.execution.pending import Pending
from quire.engine.scheduling.scheduler import Scheduler
from quire.loadtest import workloads
from quire.loadtest.arguments import count

PARTS: dict[str, tuple[type, str]] = {
    "plan": (Scheduler, "plan"), "launch": (ModelRunner, "launch"), "wait": (Pending, "result"),
    "commit": (Scheduler, "commit"), "step": (EngineCore, "step"),
}
PROFILE_FROM = 0.5  # of the steps


def main(argv: list[str]) -> int:
    args = _parse(argv)
    flags = {} if args.max_model_len is None else {"max_model_len": args.max_model_len}
    llm = LLM(model=args.model, load_format="dummy", skip_tokenizer_init=True, dtype=args.dtype, **flags)
    with _timed_parts() as times:
        for number in range(args.rounds):  # the first is the warm-up of the others
            times.clear()
            seconds = _run(llm, args.workload, number)
            print(f"{args.workload}: {seconds:.3f} s, {len(times['step'])} steps", flush=True)
    times["rest"] = [(seconds - sum(times["step"])) / len(times["step"])]
    for name, found in times.items():
        ms = [value * 1e3 for value in found]
        print(f"  {name:8} median {statistics.median(ms):8.3f}  mean {statistics.fmean(ms):8.3f}  max {max(ms):.3f} ms")
    if args.profiled and torch.cuda.is_available():
        _profile(llm, args, len(times["step"]))
    return 0


def _run(llm: LLM, workload: str, number: int) -> float:
    """Seconds of the workload, with prompts of which nothing is cached from an earlier run."""
    ids, lengths = workloads.prompts(workload, llm.info.vocab_size)
    ids = [prompt[number:] + prompt[:number] for prompt in ids]
    params = [SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=n, detokenize=False) for n in lengths]
    begin = time.perf_counter()
    llm.generate(list(ids), params, use_tqdm=False)
    return time.perf_counter() - begin


@contextmanager
def _timed_parts() -> Iterator[defaultdict[str, list[float]]]:
    """Seconds of each call of PARTS meanwhile."""
    times: defaultdict[str, list[float]] = defaultdict(list)

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                times[name].append(time.perf_counter() - begin)
        return call

    own = {name: getattr(owner, method) for name, (owner, method) in PARTS.items()}
    for name, (owner, method) in PARTS.items():
        setattr(owner, method, timed(name, own[name]))
    try:
        yield times
    finally:
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, own[name])


def _profile(llm: LLM, args: argparse.Namespace, num_steps: int) -> None:
    """Kernels of some steps from the middle of one more run on, by name."""
    step, first = EngineCore.step, int(num_steps * PROFILE_FROM)
    num_profiled = min(args.profiled, num_steps - first - 1)
    seen = 0
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    span = [0.0, 0.0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if seen in (first, first + num_profiled):
            torch.cuda.synchronize()
            profiler.start() if seen == first else profiler.stop()
            span[seen != first] = time.perf_counter()
        seen += 1
        return step(*args, **kwargs)

    EngineCore.step = counting  # type: ignore[method-assign]
    _run(llm, args.workload, args.rounds)
    EngineCore.step = step  # type: ignore[method-assign]
    took: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type.name == "CUDA":
            took[event.name] += event.device_time
            calls[event.name] += 1
    busy = sum(took.values()) / num_profiled
    whole = (span[1] - span[0]) / num_profiled
    print(f"  device   busy {busy / 1e3:.3f} ms of {whole * 1e3:.3f} a step, while profiled")
    for name, us in took.most_common(24):
        print(f"    {us / num_profiled:9.1f} us  {calls[name] / num_profiled:7.1f} times  {name[:90]}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quire bench steps", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory; loadtest/models holds the shapes of our log")
    parser.add_argument("--workload", default="decode", choices=list(workloads.load()),
                        help="made for GPUs; on a CPU take `single`, which may be minutes there [%(default)s]")
    parser.add_argument("--dtype", default="auto", help="[%(default)s]")
    parser.add_argument("--max-model-len", type=count, metavar="N", help="the model's own if unset")
    parser.add_argument("--rounds", type=count, default=2, metavar="N",
                        help="runs of the workload: the parts are of the last, and those before warm up [%(default)s]")
    parser.add_argument("--profiled", type=int, default=20, metavar="N",
                        help="steps whose kernels are told, on a GPU; 0: none [%(default)s]")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
