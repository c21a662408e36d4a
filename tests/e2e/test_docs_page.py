"""/docs in a real Chromium: it shows the API, answers a try, breaks no policy of its own and asks nobody else."""

from __future__ import annotations

import pytest

from tests.e2e.server import KEY, Server

browser = pytest.importorskip("tests.e2e.browser")
pytestmark = pytest.mark.skipif(not (browser.CHROMIUM and browser.DRIVER),
                                reason="needs Debian's chromium and chromium-driver")
CHAT = "#operations-generation-post_v1_chat_completions"


def test_the_page_shows_the_api_and_can_try_it(server: Server) -> None:
    with browser.browsing() as page:
        page.look(1200, 900)
        page.open(server.url + "/docs")
        page.wait("#api", "Answer a conversation", "/v1/embeddings", "Is the server alive?")
        page.click("button.authorize")
        page.type(".auth-container input", KEY)
        page.click(".auth-btn-wrapper .authorize")
        page.click(".auth-btn-wrapper .btn-done")
        page.click(f"{CHAT} .opblock-summary-control")
        page.wait(f"{CHAT} .try-out__btn")
        page.click(f"{CHAT} .try-out__btn")
        page.click(f"{CHAT} .execute")
        page.wait(f"{CHAT} .live-responses-table", "200", '"chat.completion"')
        assert page.read_logs() == []
        asked = [url for url in page.requests if url.startswith("http")]
        assert f"{server.url}/v1/chat/completions" in asked
        assert [url for url in asked if not url.startswith(f"{server.url}/")] == []
