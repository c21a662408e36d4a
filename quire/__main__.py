"""`python -m quire` is the command `quire`."""

from __future__ import annotations

import sys

from quire.app.cli import main

sys.exit(main())
