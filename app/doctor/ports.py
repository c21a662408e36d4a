"""Whether the server could listen where it is told to."""

from __future__ import annotations

import os

from quire.app.doctor.finding import Finding, fail, ok
from quire.app.listen import listen, listen_admin, url_of
from quire.app.settings import ServeSettings
from quire.engine.errors import ConfigError


def check_ports(settings: ServeSettings) -> list[Finding]:
    found = []
    for check, bind in (("port", listen), ("admin port", listen_admin)):
        try:
            listener = bind(settings)
        except ConfigError as error:
            advice = "stop what listens there (ss -ltnp tells), or take another"
            found += [fail(check, problem, advice) for problem in error.problems]
            continue
        if listener is not None:
            with listener:
                found.append(ok(check, f"{url_of(listener, settings.scheme)} is free"))
                if isinstance(name := listener.getsockname(), str):
                    os.unlink(name)
    return found
