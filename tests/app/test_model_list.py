"""`quire models` lists what the registry has, and README.md shows the same.

Run as a program, this writes README.md's table anew.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quire.app import model_list
from quire.app.cli import main
from quire.engine.model_registry import FAMILIES
from quire.engine.weights.gguf_config import read_architectures

README = Path(__file__).parents[2] / "README.md"
TABLE = re.compile(r"^\| models \| architectures .*\n(?:\|.*\n)+", re.MULTILINE)


def table() -> str:
    return "\n".join(model_list.markdown(model_list.rows())) + "\n"


def test_the_readme_shows_the_list() -> None:
    assert TABLE.findall(README.read_text(encoding="utf-8")) == [table()], (
        "write it anew: python -m tests.app.test_model_list")


def test_every_architecture_has_one_row_that_says_what_it_is() -> None:
    rows = model_list.rows()
    assert sorted(name for row in rows for name in row.architectures) == sorted(FAMILIES)
    for row in rows:
        assert row.models and row.special, f"the file of {row.architectures} does not begin with 'Models: special'"
        assert "|" not in "".join([row.models, row.special]) and len(row.models) < 60
    assert [row.code for row in rows] == ["quire"] * (len(rows) - 1) + ["transformers"]


def test_gguf_files_are_told_by_the_name_that_they_have() -> None:
    told = {(name, architecture) for row in model_list.rows() for name in row.gguf
            for architecture in row.architectures}
    for name, architectures in read_architectures().items():
        assert FAMILIES.keys() >= set(architectures)
        assert {(name, architecture) for architecture in architectures} <= told
    (llama,) = [row for row in model_list.rows() if "LlamaForCausalLM" in row.architectures]
    assert "llama" in llama.gguf and llama.files == ["safetensors", "pytorch_model.bin", "GGUF"]


def test_only_what_overflows_float16_says_so() -> None:
    for row in model_list.rows():
        overflows = any(FAMILIES[name].overflows_float16 for name in row.architectures)
        assert ("float16" in row.special) == overflows


def test_columns_are_aligned_and_programs_get_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    columns = [lines[0].index(title) for title in lines[0].split()]
    assert all(line[at - 1] == " " and line[at] != " " for line in lines for at in columns[1:])
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["models"] for row in listed] == [line[:columns[1]].strip() for line in lines[1:]]
    assert main(["models", "--markdown"]) == 0
    assert capsys.readouterr().out == table()


def test_the_list_needs_no_torch() -> None:
    code = ("import sys; from quire.app.cli import main; main(['models']); "
            "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "LlamaForCausalLM" in done.stdout, done.stderr


if __name__ == "__main__":
    README.write_text(TABLE.sub(lambda _: table(), README.read_text(encoding="utf-8")), encoding="utf-8")
