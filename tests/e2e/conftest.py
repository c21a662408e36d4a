from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.server import Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Shared by tests that leave it as they found it. Two HTTP workers, so that nothing depends on there being one."""
    with serving("--host", "127.0.0.1", "-asc", "2") as server:
        yield server
