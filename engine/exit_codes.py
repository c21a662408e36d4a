"""Why a process of ours ended, as its exit code says it. Shared by the engine, the launcher and the command line;
docs/operations.md tells operators.
"""

from __future__ import annotations

EXIT_CONFIG = 2  # the settings cannot be used: it would be the same again
EXIT_LOAD = 3  # the model could not be loaded, or not fetched: another try may do better
EXIT_BROKEN = 70
