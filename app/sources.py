"""Where settings come from: flags, environment, a file and defaults, in that order.

`load` reports everything that is wrong in all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.app import otlp_endpoint, strict_yaml
from quire.app.keys.sources import key_sources
from quire.app.options import OPTIONS, as_json_list, parse, shown, unknown, variable
from quire.app.settings import ServeSettings, flag
from quire.app.variables import is_kubernetes_port, mistyped
from quire.app.vllm_flags import meant
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.frontend.vllm_arguments import AS_IF_UNSET, NEGATED, OTHER_NAMES, VLLM_ARGUMENTS, Foreign


@dataclass(frozen=True)
class Loaded:
    settings: ServeSettings
    sources: dict[str, str]  # option -> where its value came from, for those that are not defaults
    warnings: list[str] = field(default_factory=list)


def load(flags: dict[str, Any], environment: Mapping[str, str], problems: list[str] | None = None) -> Loaded:
    """The settings from flags (texts, lists of texts, or booleans), environment, file and defaults.

    `problems` are those that the command line already has.

    Raises:
        ConfigError: with every problem of every source.
    """
    problems = list(problems or [])
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    config_file = flags.pop("config", None) or environment.get("QUIRE_CONFIG")
    given = (list(_from_file(config_file, problems)) + list(_from_environment(environment, problems))
             + [(name, raw, flag(name)) for name, raw in flags.items()])
    warnings: list[str] = []
    for written, raw, source in given:  # weakest first: a later one takes its place
        name = NEGATED.get(written) or OTHER_NAMES.get(written, written)
        if name in VLLM_ARGUMENTS:
            _judge(VLLM_ARGUMENTS[name], source, raw, problems, warnings)
            continue
        if raw in AS_IF_UNSET.get(name, ()):
            values.pop(name, None)
            continue
        try:
            value = parse(raw, OPTIONS[name].type)
            values[name] = not value if written in NEGATED else value
            sources[name] = source
        except ValueError as error:
            problems.append(f"{source}: {error}")
    engine = EngineArgs(**{name: value for name, value in values.items() if OPTIONS[name].of_engine})
    service = {name: value for name, value in values.items() if not OPTIONS[name].of_engine}
    settings = ServeSettings(engine=engine, **service)
    problems += [_naming_source(problem, sources) for problem in settings.problems()]
    if problems:
        raise ConfigError(problems)
    variables = {"QUIRE_CONFIG", *map(variable, OPTIONS)}
    if not settings.otlp_traces_endpoint:
        warnings += otlp_endpoint.warnings(environment)
    warnings += [unknown(name, variables) for name in mistyped(environment, variables)]
    return Loaded(settings, sources, warnings)


def _judge(row: Foreign, source: str, raw: Any, problems: list[str], warnings: list[str]) -> None:
    """Of an argument that only vLLM has."""
    value = meant(raw)
    if problem := row.problem(source, value):
        problems.append(problem)
    elif warning := row.warning(source, value):
        warnings.append(warning)


def _naming_source(problem: str, sources: dict[str, str]) -> str:
    """`--port: ...` said of a value that came from elsewhere names that place too."""
    name = problem.split(":", 1)[0].removeprefix("--").replace("-", "_")
    source = sources.get(name)
    return problem if source is None or source == flag(name) else f"{problem} (from {source})"


def _from_environment(environment: Mapping[str, str],
                      problems: list[str]) -> Iterator[tuple[str, Any, str]]:
    yield from key_sources(environment, problems)
    for name, option in OPTIONS.items():
        raw = environment.get(variable(name))
        if raw is not None and not is_kubernetes_port(variable(name), raw):
            yield name, _listed(raw) if option.type == list[str] else raw, variable(name)


def _listed(raw: str) -> list[str]:
    found = as_json_list(raw)
    return raw.split(",") if found is None else found


def _from_file(path: str | None, problems: list[str]) -> Iterator[tuple[str, Any, str]]:
    if path is None:
        return
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = _parse_toml(text) if path.endswith(".toml") else strict_yaml.load(text)
    except (OSError, ValueError) as error:
        problems.append(f"--config: {path} cannot be read: {getattr(error, 'strerror', error)}")
        return
    if not isinstance(content or {}, dict):
        problems.append(f"--config: {path} must hold one setting a line, as `name: value`")
        return
    spellings: dict[str, str] = {}
    for key, value in (content or {}).items():
        name = str(key).replace("-", "_")
        if not any(name in known for known in (OPTIONS, OTHER_NAMES, NEGATED, VLLM_ARGUMENTS)):
            problems.append(f"{path}: {unknown(str(key), OPTIONS)}")
        elif name in spellings:
            problems.append(f"{path}: {key} is {spellings[name]}, which is there too; keep one of them")
        elif value is not None:
            yield name, value, f"{path}: {key}"
        spellings[name] = str(key)


def _parse_toml(text: str) -> Any:
    try:
        import tomllib  # Python 3.11 has it, 3.10 does not
    except ImportError:
        raise ValueError("TOML needs Python 3.11 or newer; write the file as YAML") from None
    return tomllib.loads(text)


def describe(loaded: Loaded) -> list[tuple[str, str, str]]:
    """(flag, value, source) of every option, secrets redacted."""
    return [(flag(name), "" if value is None else str(value), loaded.sources.get(name, "default"))
            for name, value in shown(loaded.settings).items()]
