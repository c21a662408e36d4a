"""The command `quire`: serve, check, doctor, models, pull, keys, chat, complete, top, run-batch, simulate, bench,
version. Parses flags; the rest is elsewhere.

Help is quick: nothing heavy is imported before a command needs it, torch never.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn

from quire import __version__
from quire.app.command_parser import CommandParser
from quire.app.keys import cli as keys
from quire.app.keys.key import SHORTEST_KEY, digest_of, plain_key
from quire.app.keys.key_file import load_key_file
from quire.app.options import OPTIONS, Option, parse, unknown
from quire.app.settings import ServeSettings, flag
from quire.app.sources import Loaded, describe, load
from quire.app.vllm_flags import SWITCHES, add_flags, spelled, without_program
from quire.engine.errors import ConfigError, PassingError
from quire.engine.exit_codes import EXIT_CONFIG, EXIT_LOAD

EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141
_SHORT_KEY = f"an API key has fewer than {SHORTEST_KEY} characters and may be found by trying"
_SHORT = {"tensor_parallel_size": "-tp", "pipeline_parallel_size": "-pp", "data_parallel_size": "-dp",
          "api_server_count": "-asc", "quantization": "-q"}
_SWITCHES = {flag(name): flag(name) for name, option in OPTIONS.items() if option.type is bool}
_SWITCHES |= {name: name for name in SWITCHES}
_SWITCHES |= {"--no-" + name.removeprefix("--"): name for name in _SWITCHES}
_SOURCES = """\
Every flag is also an environment variable (--max-model-len is QUIRE_MAX_MODEL_LEN) and a line of the file given with
--config (YAML, or TOML where it ends in .toml). A flag wins over the environment, that over the file, that over the
default. Whole numbers may be written as 128k (128000) or 128K (131072)."""
_PURPOSES = {
    "serve": "Serve a model over HTTP.",
    "check": "Show the settings that `quire serve` with these flags would use, and where each came from.",
    "doctor": "Look at this machine as `quire serve` with these flags would find it.",
    "run-batch": "",  # which has a help of its own
}
_ENDINGS = {
    "serve": """`quire check` takes the same flags and shows what would be used.

SIGTERM drains, a second one stops now; SIGHUP reads keys, certificates and log level again.

Exit codes: 0 stopped on request, 2 wrong settings, 3 the model could not be loaded, 70 the engine or the HTTP service
broke for good, 71 the engine hung again and again.""",
    "check": "Exit codes: 0 usable, 2 wrong settings.",
    "doctor": "Exit codes: 0 it would serve, 1 it would not.",
    "run-batch": "",
}


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    """Lets flags be checked together with the other sources, instead of leaving at the first mistake."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def main(argv: list[str] | None = None) -> int:
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever reads our output has enough; nor must the interpreter's end write to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _run(argv: list[str]) -> int:
    if argv[:1] == ["bench"]:
        # Late: it brings the engine, and torch with it.
        from quire.loadtest.__main__ import main as bench

        return bench(argv[1:])
    if argv[:1] == ["pull"]:
        from quire.app.pull import main as pull  # late: it brings the tokenizer

        return pull(argv[1:])
    if argv[:1] == ["models"]:
        from quire.app.model_list import main as models

        return models(argv[1:])
    if argv[:1] == ["doctor"]:
        return _doctor(argv[1:])
    if argv[:1] == ["simulate"]:
        from quire.loadtest.simulate.main import main as simulate  # late: it brings the scheduler

        return simulate(argv[1:])
    if argv[:1] == ["run-batch"]:
        from quire.app.batch.cli import main as run_batch  # late: it brings numpy

        return run_batch(argv[1:], lambda flags: load_settings("run-batch", flags))
    if argv[:1] == ["top"]:
        from quire.app.top.cli import main as top  # late: it brings prometheus_client

        return top(argv[1:])
    if argv[:1] in (["serve"], ["check"]):
        return _serve_or_check(argv[0], argv[1:])
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help(sys.stderr)
        return EXIT_CONFIG
    if options.command == "version":
        print(f"quire {__version__}")
        return 0
    if options.command == "keys":
        return keys.main(options)
    from quire.app import terminal

    return terminal.chat(options) if options.command == "chat" else terminal.complete(options)


def _parser() -> CommandParser:
    """Of all commands; those added without help parse their flags themselves, and are only listed here."""
    parser = CommandParser(prog="quire", description="A server for open-weight language models.",
                           epilog="To begin: quire serve; then, in another terminal, quire chat.")
    parser.add_argument("--version", action="version", version=f"quire {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve a model over HTTP (quire serve --help)", add_help=False)
    commands.add_parser("check", help="show the settings that serve would use, or all that is wrong with them",
                        add_help=False)
    commands.add_parser("doctor", help="look at this machine as serve would find it, and say what to do",
                        add_help=False)
    commands.add_parser("models", help="list the families of models that are run, and from which files",
                        add_help=False)
    commands.add_parser("pull", help="fetch a model from a hub, so that the first start need not wait for it",
                        add_help=False)
    keys.add_commands(commands.add_parser("keys", help="make, list and revoke the keys of --api-key-file"))
    chat = commands.add_parser("chat", help="talk to a running server")
    chat.add_argument("--system-prompt", help="what the model is told first")
    _add_client(chat)
    _add_client(commands.add_parser("complete", help="let a running server go on with a text"))
    commands.add_parser("top", help="watch a running server: requests, cache, tokens/s, latencies", add_help=False)
    commands.add_parser("run-batch", help="answer a file of requests, by a running server or one of its own",
                        add_help=False)
    commands.add_parser("simulate", help="work out how a load would be served by a GPU, without one", add_help=False)
    commands.add_parser("bench", help="measure (quire bench --help)", add_help=False)
    commands.add_parser("version", help="print the version")
    return parser


# serve and check


def _serve_or_check(command: str, argv: list[str]) -> int:
    try:
        loaded = load_settings(command, without_program(argv) if command == "check" else argv)
        _check_files(loaded.settings)
    except ConfigError as error:
        print(f"quire {command}: {len(error.problems)} problem(s):", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        return EXIT_CONFIG
    short = [plain_key(digest_of(key)).name for key in loaded.settings.api_key or [] if len(key) < SHORTEST_KEY]
    if command == "check":
        return _show(loaded, short)
    return _serve(loaded, short, argv)


def _doctor(argv: list[str]) -> int:
    from quire.app.doctor.report import main as doctor  # late: it brings TLS and the model's files

    flags = [word for word in argv if word != "--json"]
    return doctor(lambda: load_settings("doctor", flags).settings, as_json=len(flags) < len(argv))


def _check_files(settings: ServeSettings) -> None:
    """Those of keys and certificates. Raises ConfigError with every problem."""
    from quire.app.tls import check_tls  # late: it brings asyncio and structlog

    problems: list[str] = []
    try:
        if settings.api_key_file is not None:
            load_key_file(settings.api_key_file)
    except ConfigError as error:
        problems += [f"--api-key-file: {problem}" for problem in error.problems]
    try:
        check_tls(settings)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


def load_settings(command: str, argv: list[str]) -> Loaded:
    """Raises ConfigError with every problem of flags, environment and file."""
    parser = _serve_parser(command)
    problems: list[str] = []
    flags: dict[str, Any] = {}
    try:
        namespace, rest = parser.parse_known_args(_without_truths(spelled(argv), problems))
        flags = vars(namespace)
        for before, given in zip(["", *rest], rest):
            if given.startswith("-"):
                name = given.partition("=")[0]
                problems.append(f"{name}: {unknown(name, map(flag, OPTIONS))}")
            elif not before.startswith("-"):  # else it is the value of what is not known
                problems.append(f"{given}: not expected here")
    except _UsageError as error:
        problems.append(str(error))
    positional = flags.pop("model_tag", None)
    if positional is not None:
        flags.setdefault("model", positional)
    return load(flags, os.environ, problems)


def _without_truths(argv: list[str], problems: list[str]) -> list[str]:
    """`argv` without `false` and the like after a switch, which argparse would take for the model; a problem each."""
    left = []
    for before, given in zip(["", *argv], argv):
        name, _, value = (before, "", given) if _is_truth(given) else given.partition("=")
        if name in _SWITCHES and value:
            on = _SWITCHES[name]
            problems.append(f"{name}: takes no value; write {on} or --no-{on[2:]}, without {value!r}")
        else:
            left.append(given)
    return left


def _is_truth(text: str) -> bool:
    try:
        parse(text, bool)
    except ValueError:
        return False
    return True


def _serve_parser(command: str) -> _Parser:
    parser = _Parser(prog=f"quire {command}", usage=f"quire {command} [MODEL] [--flag VALUE ...]",
                     description=_PURPOSES[command], epilog=f"{_SOURCES}\n\n{_ENDINGS[command]}", allow_abbrev=False,
                     argument_default=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help=OPTIONS["model"].help)
    parser.add_argument("--config", metavar="FILE", help="Settings file, YAML or TOML; also QUIRE_CONFIG.")
    if command == "doctor":
        parser.add_argument("--json", action="store_true", help="The findings for programs.")  # _doctor takes it out
    groups = {True: parser.add_argument_group("model and engine"), False: parser.add_argument_group("service")}
    for option in OPTIONS.values():
        _add_option(groups[option.of_engine], option)
    add_flags(parser)
    return parser


def _add_option(group: Any, option: Option) -> None:
    names = [flag(option.name)] + ([_SHORT[option.name]] if option.name in _SHORT else [])
    settings: dict[str, Any] = {"dest": option.name, "help": (option.help + _default(option)).replace("%", "%%")}
    if option.type is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["metavar"] = {int: "N", float: "X"}.get(option.type, "TEXT")
        if option.type == list[str]:
            settings["nargs"] = "+"
    group.add_argument(*names, **settings)


def _default(option: Option) -> str:
    if option.default is None or option.default is False or option.default == "":
        return ""
    shown = "on" if option.default is True else f"{option.default:g}" if option.type is float else option.default
    return f" [{shown}]"


def _show(loaded: Loaded, short_keys: list[str]) -> int:
    for name in short_keys:
        print(f"quire check: warning: {_SHORT_KEY} ({name})", file=sys.stderr)
    for warning in loaded.warnings:
        print(f"quire check: warning: {warning}", file=sys.stderr)
    rows = describe(loaded)
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for name, value, source in rows:
        print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}")
    return 0


def _serve(loaded: Loaded, short_keys: list[str], argv: list[str]) -> int:
    # Late: only `serve` needs sockets, child processes and logs.
    import structlog

    from quire.app.launcher import Launcher
    from quire.app.telemetry.audit import AuditError, AuditLog
    from quire.engine.frontend.chat_template import load_chat_template, may_be_name
    from quire.engine.logs import configure_logging
    from quire.engine.tokenizers.tokenizer_files import find_tokenizer
    from quire.engine.weights.locate import is_hub_model, resolve_model

    settings = loaded.settings
    configure_logging(settings.log_level)
    log = structlog.get_logger("quire")
    for name in short_keys:
        log.warning(_SHORT_KEY, key=name)
    for warning in loaded.warnings:
        log.warning(warning)
    audit = AuditLog(settings.audit_log)
    try:
        audit.check()
        if not is_hub_model(settings.engine):  # one that is not there is known before anything starts
            model = resolve_model(settings.engine)
            if not settings.engine.skip_tokenizer_init:
                find_tokenizer(model, settings.engine.tokenizer)
            template = settings.engine.chat_template
            if template is not None and not may_be_name(template):
                load_chat_template(model, template, None)
        audit.write("server start", "begun", version=__version__, model=settings.engine.model)
        code = Launcher(settings, reread=lambda: load_settings("serve", argv).settings).run()
    except (ConfigError, AuditError) as error:
        for problem in str(error).splitlines():
            print(f"quire serve: {problem}", file=sys.stderr)
        return EXIT_LOAD if isinstance(error, PassingError) else EXIT_CONFIG
    try:
        audit.write("server stop", "done", exit_code=code)
    except AuditError as error:
        log.error("audit log cannot be written", reason=str(error))
    return code


# chat and complete


def _add_client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", help="what to say; without it, lines are read from the terminal")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", default="http://127.0.0.1:8000/v1", help=(
        "the server's base address; http:// and /v1 may be left out [%(default)s]"))
    where.add_argument("--port", type=int, metavar="N", help="its port on this machine, in place of --url")
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY", ""), help="the key; also VLLM_API_KEY")
    parser.add_argument("--model", default=None, help="the model's name; the server's first if unset")
    parser.add_argument("--max-tokens", type=int, default=None, help="most tokens of a reply")
    parser.add_argument("--temperature", type=float, default=None, help="sampling temperature")
