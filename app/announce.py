"""What a person or a log sees of the start: a few plain lines on a terminal, JSON events otherwise."""

from __future__ import annotations

import time

import structlog

from quire.app.settings import ServeSettings
from quire.engine.stderr import stderr

log = structlog.get_logger("quire")

_CURL = """\
  curl {url}/v1/chat/completions -H 'Content-Type: application/json' {key}\\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "How do plants make food?"}}]}}'"""


class Announcer:
    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._terminal = stderr.isatty()
        self._started = time.monotonic()
        self._phase = ""

    def starting(self, url: str) -> None:
        """`url` is answered soon, and by the model once it is ready."""
        settings = self._settings
        if self._terminal:
            watch = f"; watch it start at {url}/" if self._has_console(url) else ""
            self._print(f"quire: serving {settings.engine.model}{watch}")
        else:
            log.info("starting", model=settings.engine.model, http_workers=settings.num_http_workers,
                     api_keys=len(settings.api_key or []), url=url)

    def loading(self, phase: str, fraction: float) -> None:
        """Called a few times a second; logs each phase once. On a terminal the engine itself shows a bar."""
        if phase != self._phase and not self._terminal:
            log.info("loading", phase=phase, fraction=round(fraction, 3))
        self._phase = phase

    def ready(self, url: str, again: bool) -> None:
        """The model answers; `again` after an engine restart."""
        seconds = round(time.monotonic() - self._started, 1)
        self._phase = ""
        if not self._terminal:
            log.info("ready", url=url, start_s=None if again else seconds)
        elif again:
            self._print("quire: ready again")
        else:
            key = "-H \"Authorization: Bearer $VLLM_API_KEY\" " if self._settings.has_keys else ""
            chat = f"Chat with it in a browser at {url}/ or try:" if self._has_console(url) else "Try:"
            self._print(f"quire: ready on {url} after {seconds} s. {chat}\n")
            target = url.replace("unix:", "--unix-socket ") + " http://localhost" if url.startswith("unix:") else url
            self._print(_CURL.format(url=target, key=key, model=self._settings.model_names[0]) + "\n")

    def _has_console(self, url: str) -> bool:
        return self._settings.console and not url.startswith("unix:")  # which no browser opens

    def terminal_is_gone(self) -> bool:
        """It was closed under us: its SIGHUP means an end, not a reload."""
        return self._terminal and not stderr.isatty()

    def stopped(self) -> None:
        if self._terminal:
            self._print("quire: stopped")
        else:
            log.info("stopped")

    @staticmethod
    def _print(text: str) -> None:
        stderr.write(text + "\n")
