"""`quire models`: which families of models are run, by whose code and from which files.

Says nothing of its own: the registry names architectures, GGUF's reader those of its files, and the first sentence of a
family's file in engine/models, read and not imported, says which models these are and what is special about them.
"""

from __future__ import annotations

import argparse
import ast
from importlib import resources

import msgspec

from quire.app.command_parser import CommandParser
from quire.engine.model_registry import FAMILIES, OTHER, overflows_float16
from quire.engine.weights.gguf_config import read_architectures

_EPILOG = """\
Each family of Quire's own is compared with transformers' code in its tests, on prompts that are whole, in chunks and
token by token, in a batch that is preempted, and on two ranks (tests/engine/models/); Baichuan, which transformers does
not have, with its formulas."""
_TITLES = ("models", "architectures", "code", "files", "special")


class Row(msgspec.Struct, frozen=True):
    models: str
    architectures: list[str]  # Hugging Face's names; none for all others
    code: str  # whose: quire or transformers
    files: list[str]  # formats of weights
    gguf: list[str]  # general.architecture of its GGUF files
    special: str


def main(argv: list[str]) -> int:
    parser = CommandParser(prog="quire models", description="List the families of models that are run.",
                           epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the list for programs")
    form.add_argument("--markdown", action="store_true", help="the table of README.md")
    options = parser.parse_args(argv)
    if options.json:
        print(msgspec.json.encode(rows()).decode())
    else:
        print("\n".join(markdown(rows()) if options.markdown else aligned(rows())))
    return 0


def rows() -> list[Row]:
    """A row for each file of engine/models that has a family, by name; that of transformers' code is the last."""
    by_file: dict[str, list[str]] = {}
    for architecture, family in FAMILIES.items():
        by_file.setdefault(family.model.partition(":")[0], []).append(architecture)
    found = [_row(module, architectures, "quire") for module, architectures in by_file.items()]
    return [*sorted(found, key=lambda row: row.models.lower()), _row(OTHER.model.partition(":")[0], [], "transformers")]


def _row(module: str, architectures: list[str], code: str) -> Row:
    source = resources.files("quire.engine").joinpath("models", f"{module}.py").read_text(encoding="utf-8")
    said = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].replace("\n", " ")
    models, _, special = said.partition(": ")
    gguf = [name for name, those in read_architectures().items() if not set(those).isdisjoint(architectures)]
    special = special.rstrip(".") + ("; overflows float16" if any(map(overflows_float16, architectures)) else "")
    return Row(models, architectures, code, ["safetensors", "pytorch_model.bin", *(["GGUF"] if gguf else [])], gguf,
               special)


def aligned(rows: list[Row]) -> list[str]:
    table = [_TITLES, *(_cells(row) for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(_TITLES) - 1)]
    return ["  ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, widths)), cells[-1]]) for cells in table]


def markdown(rows: list[Row]) -> list[str]:
    table = [_TITLES, ("---",) * len(_TITLES), *(_cells(row) for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in table]


def _cells(row: Row) -> tuple[str, ...]:
    files = [f"{name} ({', '.join(row.gguf)})" if name == "GGUF" else name for name in row.files]
    return row.models, ", ".join(row.architectures) or "any other", row.code, ", ".join(files), row.special
