"""`quire run-batch`: its flags, and the order of things: check the files, find or start a server, send, keep, count."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from quire.app.batch.ids import CustomIds, Duplicates
from quire.app.batch.input_file import InputFile
from quire.app.batch.line import BadLine, Result, Task, failed
from quire.app.batch.output_file import OutputError, OutputFile
from quire.app.batch.own_server import OwnServer, StartError
from quire.app.batch.progress import Progress
from quire.app.batch.sending import Sender, Stop
from quire.app.command_parser import CommandParser
from quire.app.peer import Lost, Peer, Unreachable, with_scheme
from quire.app.sources import Loaded
from quire.engine.errors import ConfigError
from quire.engine.exit_codes import EXIT_CONFIG

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
MOST_CONCURRENT = 4096
_LOOK_S = 0.5
_EPILOG = """\
A line of IN is {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}; url is any path of
the server that takes JSON. A line of OUT is {"id", "custom_id", "response": {"status_code", "request_id", "body"} or
null, "error"}; lines come in the order in which they are done.

With --url, requests go to a running server. Otherwise a server of its own is started with any flags of quire serve
(--model MODEL first of all) and stopped at the end.

The same command again goes on with the lines of IN that have no line in OUT.

Exit codes: 0 every line has a reply of status 200, 1 some have not, 2 wrong flags or files, 130 interrupted."""


class _UsageError(Exception):
    pass


def main(argv: list[str], load_settings: Callable[[list[str]], Loaded]) -> int:
    """`load_settings` makes settings of flags of `quire serve`."""
    options, serve_flags = _parse(argv)
    try:
        return _run(options, serve_flags, load_settings)
    except (ConfigError, Duplicates) as error:
        for problem in error.problems:
            _say(problem)
    except (_UsageError, OutputError) as error:
        _say(str(error))
    except OSError as error:
        _say(f"{error.filename or 'a file'}: {error.strerror}")
    return EXIT_CONFIG


def _run(options: argparse.Namespace, serve_flags: list[str], load_settings: Callable[[list[str]], Loaded]) -> int:
    loaded = None if options.url else _settings(serve_flags, load_settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_sigterm_interrupts())
        requests = stack.enter_context(contextlib.closing(InputFile(options.input)))
        output = stack.enter_context(contextlib.closing(OutputFile(options.output)))
        if output.is_file(requests.fileno()):
            raise _UsageError(f"{options.output} is the input too; name another file with -o")
        ids = CustomIds(requests.requests)
        output.read(ids, retry_failed=options.retry_failed)
        progress = Progress(ids.num_requests, output.num_done, output.num_failed)
        todo = (item for item in requests.requests() if not output.has(item))
        try:
            if output.num_done >= ids.num_requests:
                progress.end("nothing left to do")
                return EXIT_FAILED if progress.num_failed else 0
            if loaded is None:
                peer, ended = _running_server(options), _never
            else:
                own = stack.enter_context(OwnServer(loaded, progress.note))
                peer, ended = own.peer, own.ended
            concurrency = options.concurrency or _room(peer)
            sender = Sender(peer, concurrency, options.patience, ended)
            stack.callback(sender.close)
            progress.begin()
            _work(todo, sender, output, progress, concurrency)
        except StartError as error:
            progress.end(str(error))
            return error.exit_code
        except Stop as error:
            progress.end(f"stopped, {error}")
            return EXIT_FAILED
        except KeyboardInterrupt:
            progress.end("interrupted, the same command goes on from here")
            return EXIT_INTERRUPTED
        progress.end("done")
    return EXIT_FAILED if progress.num_failed else 0


def _work(todo: Iterator[Task | BadLine], sender: Sender, output: OutputFile, progress: Progress,
          concurrency: int) -> None:
    """Keeps `concurrency` requests under way and writes what comes back. Raises Stop, with all that came kept."""
    num_sent, exhausted = 0, False
    while True:
        refused: list[Result] = []
        while not exhausted and num_sent + len(refused) < concurrency:
            item = next(todo, None)
            if item is None:
                exhausted = True
            elif isinstance(item, BadLine):
                refused.append(failed(item, "invalid_line", f"line {item.number}: {item.message}"))
            else:
                sender.put(item)
                num_sent += 1
        if not (num_sent or refused):
            return
        replies = sender.take(0.0 if refused else _LOOK_S)
        num_sent -= len(replies)
        if results := refused + replies:
            try:
                output.write(b"".join(result.line for result in results))
            except BrokenPipeError:  # whoever reads our output has enough
                raise
            except OSError as error:
                raise Stop(f"the output cannot be written: {error.strerror}") from None
        progress.add(results)


def _settings(flags: list[str], load_settings: Callable[[list[str]], Loaded]) -> Loaded:
    if not flags:
        raise _UsageError("give --url, where a server runs, or --model for one of this run's own")
    loaded = load_settings(flags)
    for warning in loaded.warnings:
        _say(f"warning: {warning}")
    return loaded


def _running_server(options: argparse.Namespace) -> Peer:
    """Raises _UsageError where the address is none, and Stop where nobody answers at it."""
    try:
        peer = Peer(options.url, options.api_key)
    except ValueError as error:
        raise _UsageError(f"--url: {error}") from None
    try:
        peer.get("/v1/models")  # whatever it says: it may still load its model, and lines wait for that
    except (Unreachable, Lost) as error:
        raise Stop(f"{peer.address} does not answer: {error}") from None
    return peer


def _never() -> str:
    return ""


def _room(peer: Peer) -> int:
    """How many requests at once keep a server busy: as many as a step takes, and some that wait."""
    from quire.app.top.exposition import Exposition  # late: it brings prometheus_client

    with contextlib.suppress(Unreachable, Lost, ValueError):
        reply = peer.get("/metrics")
        if reply.status == 200:
            rows = Exposition(reply.body.decode()).labels("vllm:cache_config_info", "max_num_seqs")
            if rooms := [int(row) for row in rows if row.isdecimal()]:
                return min(MOST_CONCURRENT, sum(rooms) + sum(rooms) // 4 + 1)
    return 64


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """As Ctrl-C does, so that a server of ours is stopped."""
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    print(f"quire run-batch: {text}", file=sys.stderr)


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = CommandParser(prog="quire run-batch", description="Answer a file of requests, in OpenAI's batch form.",
                           usage="quire run-batch -i IN -o OUT (--url URL | --model MODEL [flags of quire serve])",
                           epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("-i", "--input-file", dest="input", metavar="IN", required=True,
                        help="requests, one a line; -: standard input")
    parser.add_argument("-o", "--output-file", dest="output", metavar="OUT", required=True,
                        help="replies, one a line; -: standard output, where nothing can be resumed")
    parser.add_argument("--url", help="address of a running server; http:// may be left out")
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY", "").partition(",")[0],
                        help="its key; better as VLLM_API_KEY")
    parser.add_argument("--concurrency", type=int, metavar="N",
                        help="requests at once; unset: what the server has room for, or 64 where it does not say")
    parser.add_argument("--patience", type=float, default=900.0, metavar="S", help=(
        "seconds that nothing at all may get through, for load or because the server is not there [%(default)g]"))
    parser.add_argument("--retry-failed", action="store_true",
                        help="take lines of OUT without a reply of status 200 out, and ask again")
    options, rest = parser.parse_known(argv)
    if options.url:
        parser.refuse(rest)
        options.url = with_scheme(options.url)
    if options.concurrency is not None and not 1 <= options.concurrency <= MOST_CONCURRENT:
        parser.error(f"--concurrency: {options.concurrency} is not in 1..{MOST_CONCURRENT}")
    if not 0 <= options.patience < float("inf"):
        parser.error(f"--patience: {options.patience} is not a number of seconds")
    return options, rest
