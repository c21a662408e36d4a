"""Moving over from vLLM: its command lines start or are refused by name, and docs/from-vllm.md says which.

Run as a program, this prints the page's second table anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from quire.app.cli import load_settings
from quire.app.options import OPTIONS
from quire.app.settings import flag
from quire.engine.errors import ConfigError
from quire.engine.frontend.unsupported import asked_for
from quire.engine.frontend.vllm_arguments import NEGATED, OTHER_NAMES, VLLM_ARGUMENTS, Foreign

BOTH = (True, False)
PAGE = Path(__file__).parents[2] / "docs" / "from-vllm.md"


def written(value: Any) -> str:
    return str(value) if value != "" else "''"


def becomes(row: Foreign) -> str:
    """What the page says of an argument that Quire does not have."""
    neutral = [value for value in row.neutral if not (isinstance(value, float) and int(value) in row.neutral)]
    if row.takes == "switch":
        if row.neutral == BOTH:
            return "taken, changes nothing"
        return "refused" if row.refused else "passed over"
    only = f", but for {', '.join(f'`{written(value)}`' for value in neutral)}" if neutral else ""
    return ("refused" if row.refused else "passed over") + only


def rows() -> list[str]:
    lines = [f"| `{flag(name)}` | `{flag(ours)}` | the same thing |" for name, ours in OTHER_NAMES.items()]
    lines += [f"| `{flag(name)}` | `{flag(f'no_{ours}')}` | the same thing |" for name, ours in NEGATED.items()]
    for name, row in VLLM_ARGUMENTS.items():
        short = f", `{row.short}`" if row.short else ""
        lines.append(f"| `{flag(name)}`{short} | {becomes(row)} | {row.says} |")
    return sorted(lines)


def tables() -> tuple[list[str], list[str]]:
    """The page's rows of flags that are the same, and of the others."""
    text = PAGE.read_text(encoding="utf-8")
    same, others = text.split("## The same\n")[1].split("## Other, or not there\n")
    found = [[line for line in part.split("\n## ")[0].splitlines() if line.startswith("| `-")]
             for part in (same, others)]
    return found[0], found[1]


def test_the_page_tells_what_becomes_of_each_flag() -> None:
    assert tables()[1] == rows(), "print the table anew: python -m tests.app.test_from_vllm"


def test_a_flag_that_is_the_same_is_one_of_ours() -> None:
    names = [name for row in tables()[0] for name in re.findall(r"`--([\w-]+)`", row.split("|")[1])]
    assert len(names) > 40
    assert {name.replace("-", "_") for name in names} - set(OPTIONS) == {"config"}


def told(values: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What a command line with these arguments is refused for, and warned of."""
    argv: list[str] = []
    for name, value in values.items():
        row = VLLM_ARGUMENTS[name]
        if row.takes == "switch":
            argv.append(flag(name) if value else "--no-" + flag(name)[2:])
        elif row.takes == "values":
            argv += [flag(name), *value]
        else:
            argv.append(f"{flag(name)}={value if isinstance(value, str) else json.dumps(value)}")
    try:
        return [], load_settings("serve", argv).warnings
    except ConfigError as error:
        return error.problems, []


def test_each_is_taken_at_the_values_that_ask_for_nothing() -> None:
    for place in range(max(len(row.neutral) for row in VLLM_ARGUMENTS.values())):
        values = {name: row.neutral[place] for name, row in VLLM_ARGUMENTS.items() if len(row.neutral) > place}
        assert told(values) == ([], [])
        assert asked_for({name: value for name, value in values.items() if not VLLM_ARGUMENTS[name].of_server}) == {}


def test_each_other_value_is_refused_or_warned_of_by_name_and_in_python_too() -> None:
    values = {name: {"switch": True not in row.neutral, "values": ["a", "b"]}.get(row.takes, "something")
              for name, row in VLLM_ARGUMENTS.items() if row.neutral != BOTH}
    refused = {name: value for name, value in values.items() if VLLM_ARGUMENTS[name].refused}
    passed_over = {name: value for name, value in values.items() if name not in refused}
    problems, warnings = told(refused)[0], told(passed_over)[1]
    assert len(problems) == len(refused) and len(warnings) == len(passed_over)
    for name, said in zip([*refused, *passed_over], [*problems, *warnings]):
        assert said.startswith(f"{flag(name)}: ") and said.endswith(VLLM_ARGUMENTS[name].says)
    in_python = {name: value for name, value in refused.items() if not VLLM_ARGUMENTS[name].of_server}
    with pytest.raises(ConfigError) as caught:
        asked_for(in_python)
    same_words = [said.replace(flag(name), name, 1) for name, said in zip(refused, problems) if name in in_python]
    assert caught.value.problems == same_words


SERVED = [  # as people write them
    "--model MODEL --served-model-name Qwen2-VL-2B-Instruct --max-model-len=2048",
    "--model=MODEL --dtype=half",
    "--model MODEL --host 127.0.0.1 --port 8000 --tensor-parallel-size 1 --trust-remote-code",
    "MODEL --dtype auto --api-key token-abc123",
    "MODEL --chat-template ./template.jinja --max_model_len 4096 --gpu_memory_utilization 0.9",
    "MODEL --enable-chunked-prefill --disable-log-requests --swap-space 16 --tokenizer-mode auto --disable-log-stats",
    "MODEL --max-num-seqs 64 --max-num-batched-tokens 8k --enable-prefix-caching --block-size 16 --seed 0 -tp 1 -dp 1",
    "MODEL --max-model-len auto -O3 -cc.mode=0 --compilation-config.pass_config.fuse 1 --attention-backend FLASH_ATTN",
    "MODEL --uvicorn-log-level warning --disable-uvicorn-access-log --enable-request-id-headers --root-path /llm",
    "MODEL -q awq", "MODEL --quantization fp8 --load-format dummy",
    "MODEL --task embed --runner pooling --convert embed",
    "MODEL --limit-mm-per-prompt image=4 --no-enable-prefix-caching --hf-overrides {} --quantization gguf",
]


@pytest.mark.parametrize("line", SERVED)
def test_a_command_line_of_vllms_is_understood(line: str) -> None:
    assert load_settings("serve", line.split()).settings.engine.model == "MODEL"


@pytest.mark.parametrize(("line", "refused"), [
    ("MODEL --enable-auto-tool-choice --tool-call-parser hermes --tool-server demo", ["--tool-server"]),
    ("MODEL --cpu-offload-gb 4", ["--cpu-offload-gb"]), ("MODEL -sc.method=ngram", ["--speculative-config"]),
    ("MODEL --enable-lora --lora-modules a=/a b=/b", ["--enable-lora", "--lora-modules"]),
    ("MODEL --nnodes 2 --node-rank 1 --headless", ["--nnodes", "--node-rank", "--headless"]),
    ("MODEL --task classify --runner draft", ["--task", "--runner"])])
def test_what_a_reply_would_miss_is_refused_by_name(line: str, refused: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings("serve", line.split())
    assert sorted(problem.split(":")[0] for problem in caught.value.problems) == sorted(refused)
    assert all("is not supported by this version: " in problem for problem in caught.value.problems)


def test_lists_in_json_and_switches_that_turn_off_are_understood() -> None:
    line = 'MODEL --allowed-origins ["*"] --allowed-methods ["GET","POST"] --allowed-headers ["*"]'
    serve = load_settings("serve", [*line.split(), "--disable-fastapi-docs"]).settings
    assert (serve.allowed_origins, serve.allowed_methods, serve.allowed_headers) == (["*"], ["GET", "POST"], ["*"])
    assert not serve.docs
    assert load_settings("serve", ["MODEL", "--no-disable-fastapi-docs"]).settings.docs


def test_a_settings_file_of_vllms_is_judged_by_the_same_table(tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text("model: MODEL\nswap-space: 16\nenable-chunked-prefill: true\nmax-num-queued-reqs: 7\n"
                    "disable-fastapi-docs: true\nallowed-origins: ['https://a.example']\n")
    loaded = load_settings("serve", ["--config", str(file)])
    assert loaded.settings.engine.max_queued_requests == 7
    assert (loaded.settings.docs, loaded.settings.allowed_origins) == (False, ["https://a.example"])
    assert [warning.split(" has no effect")[0] for warning in loaded.warnings] == [f"{file}: swap-space: 16"]
    file.write_text("cpu-offload-gb: 4\n")
    with pytest.raises(ConfigError, match="cpu-offload-gb: 4 is not supported by this version"):
        load_settings("serve", ["--config", str(file)])


if __name__ == "__main__":
    print("\n".join(rows()))
