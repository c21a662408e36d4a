"""gunicorn, save that it does not put the working directory in front of where Python looks for modules.

Whatever lies there, a package `quire` or a `yaml.py`, is not the server's. Started by the launcher, as a module.
"""

from __future__ import annotations

from gunicorn.app.wsgiapp import WSGIApplication


class HttpMaster(WSGIApplication):  # type: ignore[misc]
    def chdir(self) -> None:
        """It stays where the launcher is, and sys.path as it is."""


if __name__ == "__main__":
    HttpMaster(prog="gunicorn").run()
