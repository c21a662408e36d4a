"""YAML's safe part, in which a name that stands twice in one mapping is an error: the loader would keep the last.

Quotes no value, which may be a secret. Called for the key file and for the file of --config.
"""

from __future__ import annotations

from typing import Any

import yaml


def load(text: str) -> Any:
    """Raises ValueError that says what is wrong and, where that is known, on which line."""
    try:
        # The loader in Python on purpose: the one in C dies, and the process with it, of a deeply nested file.
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise ValueError(f"{line}{error.problem}") from None
    # PyYAML lets IndexError, KeyError, AttributeError and more out of nonsense such as `!!int ''`.
    except Exception as error:
        raise ValueError(type(error).__name__) from None


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise yaml.constructor.ConstructorError(
                    problem=f"{name[:40]} is there already, on line {lines[name]}", problem_mark=key.start_mark)
            lines[name] = line
        return super().construct_mapping(node, deep)
