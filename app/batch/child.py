"""`quire serve` as a child of run-batch (`python -m quire.app.batch.child --config FILE`): it dies with its parent."""

from __future__ import annotations

import sys

from quire.engine.lifeline import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    from quire.app.cli import main  # late: nothing is to go before the line above

    sys.exit(main(["serve", *sys.argv[1:]]))
