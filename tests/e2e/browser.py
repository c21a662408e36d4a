"""A real Chromium without a window, driven through Debian's chromedriver by the WebDriver protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.e2e.server import free_port, until

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # by which the protocol marks a reference to an element
ENTER, ESCAPE = "\ue007", "\ue00c"
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--force-prefers-reduced-motion",
         "--hide-scrollbars", "about:blank"]


class Browser:
    """One window. What it loaded, and what went wrong in it, is in `requests` and `complaints`."""

    def __init__(self, driver: httpx.Client, session: str) -> None:
        self._driver = driver
        self._session = session
        self.requests: list[str] = []  # addresses, all so far
        self.complaints: list[str] = []  # of the console: policies that were broken, errors that nobody caught

    def _call(self, method: str, path: str, **body: Any) -> Any:
        reply = self._driver.request(method, f"/session/{self._session}{path and '/' + path}",
                                     json=body if method == "POST" else None).json()
        if isinstance(reply["value"], dict) and "error" in reply["value"]:
            raise AssertionError(f"{path}: {reply['value']['error']}: {reply['value']['message']}")
        return reply["value"]

    def close(self) -> None:
        self._call("DELETE", "")

    def open(self, url: str) -> None:
        self._call("POST", "url", url=url)

    def reload(self) -> None:
        self._call("POST", "refresh")

    def run(self, script: str, *arguments: Any) -> Any:
        """What `script`, the body of a function, returns; a promise is waited for."""
        return self._call("POST", "execute/sync", script=script, args=arguments)

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "goog/cdp/execute", cmd=command, params=parameters)

    def _element(self, selector: str) -> str:
        return str(self._call("POST", "element", using="css selector", value=selector)[ELEMENT])

    def click(self, selector: str) -> None:
        self._call("POST", f"element/{self._element(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"element/{self._element(selector)}/value", text=text)

    def press(self, key: str) -> None:
        """Wherever the focus is."""
        self._call("POST", "actions", actions=[{"type": "key", "id": "keyboard", "actions": [
            {"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]}])

    def text(self, selector: str) -> str:
        """Of all that match, as it can be seen; nothing where it is hidden."""
        return str(self.run("return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
                            ".map(e => e.innerText).join('\\n')", selector))

    def wait(self, selector: str, *parts: str, timeout_s: float = 30.0) -> str:
        """The text of `selector`, once all `parts` are in it; without parts, once there is any."""
        deadline = time.monotonic() + timeout_s
        while not ((text := self.text(selector)) and all(part in text for part in parts)):
            assert time.monotonic() < deadline, f"{selector} says {text!r}, not {parts}; {self.read_logs()}"
            time.sleep(0.04)
        return text

    @contextmanager
    def another_tab(self) -> Iterator[None]:
        """In front of this one."""
        this = self._call("GET", "window")
        self._call("POST", "window", handle=self._call("POST", "window/new", type="tab")["handle"])
        try:
            yield
        finally:
            self._call("DELETE", "window")
            self._call("POST", "window", handle=this)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """Take this size and colour scheme."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                      mobile=width < 500)
        self.devtools("Emulation.setEmulatedMedia",
                      features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def read_logs(self) -> list[str]:
        """Complaints so far; brings `requests` and `complaints` up to date."""
        for entry in self._call("POST", "se/log", type="performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                self.requests.append(event["params"].get("request", event["params"])["url"])
        self.complaints += [entry["message"] for entry in self._call("POST", "se/log", type="browser")]
        return self.complaints


@contextmanager
def browsing() -> Iterator[Browser]:
    assert CHROMIUM and DRIVER
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                until(lambda: _listens(client), 20)
                wanted = {"browserName": "chrome",
                          "goog:chromeOptions": {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]},
                          "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
                made = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
                assert "sessionId" in made, made
                browser = Browser(client, made["sessionId"])
                try:
                    yield browser
                finally:
                    browser.close()
        finally:
            driver.terminate()
            driver.wait(10)


def _listens(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/status").json()["value"]["ready"])
    except httpx.TransportError:
        time.sleep(0.05)
        return False
