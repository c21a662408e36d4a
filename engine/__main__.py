"""`python -m quire.engine --address ipc://... --args JSON`: the engine process, as the launcher and AsyncLLMEngine
start it.

Exit codes: 0 stopped on request, else as in `quire.engine.exit_codes`.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys

import msgspec
import structlog
import zmq

from quire.engine.before_torch import settle
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, PassingError, RankError, WeightError
from quire.engine.exit_codes import EXIT_BROKEN, EXIT_CONFIG, EXIT_LOAD
from quire.engine.heartbeat import Heartbeat
from quire.engine.lifeline import die_with_parent
from quire.engine.logs import LEVELS, LevelFile, configure_logging
from quire.engine.server import EngineServer
from quire.engine.stderr import dump_stacks_on_faults, stderr

log = structlog.get_logger("engine")


def main() -> int:
    options = _options()
    configure_logging(options.log_level)
    dump_stacks_on_faults()  # a parent that finds us hung sends SIGABRT first: the log then holds every thread's stack
    settle()
    die_with_parent(options.lifeline)
    try:
        args = EngineArgs.of(msgspec.json.decode(options.args, type=dict))
    except (msgspec.DecodeError, ConfigError) as error:
        log.error("configuration refused", problems=str(error).splitlines())
        return EXIT_CONFIG
    heartbeat, levels = Heartbeat(options.beat_fd), LevelFile(options.reload_file)

    def alive() -> None:
        heartbeat.serving()
        levels.follow()

    levels.follow()
    try:
        server = EngineServer(options.address, alive, after_kill=options.after_kill)
    except zmq.ZMQError as error:  # no room for a socket
        log.error("engine cannot listen", address=options.address, reason=str(error))
        return EXIT_BROKEN
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    return serve(server, args, heartbeat)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m quire.engine", description=__doc__)
    parser.add_argument("--address", required=True, help="ZeroMQ address to serve on")
    parser.add_argument("--args", default="{}", help="EngineArgs as JSON")
    parser.add_argument("--lifeline", type=int, default=None, help="file descriptor whose end of file means: stop")
    parser.add_argument("--beat-fd", type=int, default=None, help="file descriptor to write signs of life to")
    parser.add_argument("--log-level", default="info", help=", ".join(LEVELS))
    parser.add_argument("--reload-file", default="", help="file that a new log level would be written to")
    parser.add_argument("--after-kill", action="store_true", help="the engine before this one was killed from outside")
    return parser.parse_args()


def serve(server: EngineServer, args: EngineArgs, heartbeat: Heartbeat) -> int:
    # Torch is heavy: imported only now, when the socket already answers workers.
    from quire.engine.assembly import assemble
    from quire.engine.weights.progress import reporter

    def loading(phase: str, fraction: float) -> None:
        server.progress(phase, fraction)
        heartbeat.loading()

    with reporter(loading) as progress:
        try:
            core = assemble(args, progress, server.step_advances)
        except (PassingError, WeightError, RankError, OSError) as error:
            log.error("model not loaded", model=args.model, reason=str(error))
            return EXIT_LOAD
        except ConfigError as error:
            log.error("configuration refused", problems=error.problems)
            return EXIT_CONFIG
        except Exception:  # of the device, such as out of memory
            log.exception("model not loaded", model=args.model)
            return EXIT_LOAD
    info = core.info
    log.info("engine ready", device=info.device, dtype=info.dtype, kv_type=info.kv_type,
             max_model_len=info.max_model_len, kv_tokens=info.kv_tokens, max_num_seqs=info.max_num_seqs,
             load_s=round(info.load_s, 1))
    heartbeat.serving()
    gc.freeze()  # what is here stays: looking through it again and again would halt steps for 0.1 s each time
    try:
        server.run(core)
    except RankError as error:
        log.error("engine broke", reason=str(error))
        if error.killed:  # and so are we, for those who ask how we ended
            core.close()
            stderr.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return EXIT_BROKEN
    except Exception:
        log.exception("engine broke")
        return EXIT_BROKEN
    core.close()
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
