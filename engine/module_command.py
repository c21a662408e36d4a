"""The command line that runs one of our modules as a process, as `python -m` does but for where it looks for modules.

Called by whoever starts a process: the launcher, the engine, AsyncLLMEngine. `python -m` looks in the working directory
first, where a `yaml.py` or a package `quire` of somebody else's may lie; this never looks there.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python 3.11 has -P for this, 3.10 has not. Ours come last: a checkout that is not installed finds itself all the same.
_RUN = f"""\
import sys
sys.path[:] = [*filter(None, sys.path), {str(Path(__file__).parents[2])!r}]
import runpy
runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)
"""


def module_command(module: str) -> list[str]:
    """To be followed by the module's arguments."""
    return [sys.executable, "-c", _RUN, module]
