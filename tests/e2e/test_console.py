"""The console in a real Chromium, in front of a real server: what a person sees of its start and of its answers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from quire.app.keys.key import NEVER, digest_of, new_secret
from tests.e2e.browser import CHROMIUM, DRIVER, ENTER, ESCAPE, Browser, browsing
from tests.e2e.server import KEY, Server, start, until

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")

QUESTION = "How do plants make food?"
LAST = ".answer:last-child"


@dataclass
class Console:
    server: Server
    browser: Browser
    guest: str  # a key that may not administer
    while_loading: list[str]  # what two looks at the page said, with a reload between them

    def open(self, key: str = KEY, view: str = "") -> Browser:
        """A new page, at a desk, with `key` in it and a model that answers."""
        browser = self.browser
        browser.look(1200, 800)
        browser.run("sessionStorage.clear(); if (arguments[0]) sessionStorage.setItem('quire-key', arguments[0])", key)
        browser.open(f"{self.server.url}/?{os.urandom(4).hex()}{view}")
        browser.wait("#status", "Ready", timeout_s=60)
        return browser

    def ask(self, question: str, **settings: Any) -> None:
        """Type it, with `settings` by the names of their fields."""
        if settings:
            self.browser.run("document.getElementById('settings').open = true")
        for name, value in settings.items():
            self.browser.run("document.getElementById(arguments[0]).value = ''", name)
            self.browser.type(f"#{name}", str(value))
        self.browser.run("document.getElementById('settings').open = false")
        self.browser.type("#question", question + ENTER)

    def answer(self, **options: Any) -> str:
        """Of the server, without the page: greedy, to QUESTION."""
        reply = self.server.client().chat.completions.create(
            model="smollm2-135m-instruct", messages=[{"role": "user", "content": QUESTION}], temperature=0, **options)
        return reply.choices[0].message.content or ""


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    guest = new_secret()
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.touch(mode=0o600)
    keys.write_bytes(msgspec.json.encode([{"name": "guest", "sha256": digest_of(guest), "created": NEVER}]))
    with browsing() as browser:
        server = start("--api-key-file", str(keys), "--host", "127.0.0.1", environment={"VLLM_API_KEY": KEY})
        try:
            until(lambda: server.pids()["engine"] and server.events("starting"))
            [engine] = server.pids()["engine"]
            os.kill(engine, signal.SIGSTOP)  # a load that takes as long as this needs
            seen = []
            browser.look(1200, 800)
            browser.open(server.events("starting")[0]["url"] + "/")
            for _ in range(2):
                seen.append(browser.wait("#loading", "%") + browser.text("#status") + str(
                    browser.run("return document.getElementById('send').disabled")))
                browser.reload()
            os.kill(engine, signal.SIGCONT)
            server.wait_ready()
            yield Console(server, browser, guest, seen)
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGTERM)
            server.wait_exit()


def test_the_page_is_there_while_the_model_loads_and_again_after_a_reload(console: Console) -> None:
    assert len(console.while_loading) == 2
    for seen in console.while_loading:
        assert "The model is not ready yet" in seen
        assert "Loading" in seen
        assert seen.endswith("True"), "nothing can be sent yet"


def test_without_a_key_or_with_a_wrong_one_the_page_asks_for_one_and_keeps_it_in_the_tab(console: Console) -> None:
    browser = console.open(key="")
    browser.wait("#key-reason", "needs an API key")
    browser.type("#key", "a-wrong-key" + ENTER)
    browser.wait("#key-reason", "does not know this key")
    browser.press(ESCAPE)
    assert browser.text("#key-button") == "API key refused"
    browser.click("nav a[href='#server']")
    browser.wait("#server", "Models, Keys, Settings", "The server needs a key that it knows")
    browser.click("nav a[href='#chat']")
    browser.click("#key-button")
    browser.run("document.getElementById('key').value = ''")
    browser.type("#key", KEY + ENTER)
    browser.wait("#settings-note", "smollm2-135m-instruct")
    assert (browser.text("#key-dialog"), browser.text("#key-button")) == ("", "API key ✓")
    assert browser.run("return JSON.stringify(localStorage) + document.cookie") == "{}"
    browser.reload()
    browser.wait("#settings-note", "smollm2-135m-instruct")


def test_an_answer_is_the_servers_own_with_its_costs_and_commands_that_ask_again(
        console: Console, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    browser = console.open()
    browser.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    console.ask(QUESTION, temperature=0, **{"max-tokens": 6})
    facts = browser.wait(f"{LAST} .facts", "6 tokens", "tokens/s", "first after", "prompt 36", "cut at the most")
    answer = browser.text(f"{LAST} .text")
    assert answer == console.answer(max_tokens=6)
    copied = {}
    for button, name in ((2, "curl"), (3, "Python")):
        browser.click(f"{LAST} .copies button:nth-of-type({button})")
        browser.wait(f"{LAST} .copies button:nth-of-type({button})", "Copied")
        copied[name] = str(browser.run("return navigator.clipboard.readText()"))
        assert KEY not in copied[name] and "VLLM_API_KEY" in copied[name]
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    said = subprocess.run(["sh", "-c", copied["curl"]], capture_output=True, timeout=60).stdout
    assert msgspec.json.decode(said)["choices"][0]["message"]["content"] == answer
    exec(copied["Python"], {})
    assert capsys.readouterr().out.strip() == answer
    console.ask("Say it's \"shorter\".")
    browser.wait(f"{LAST} .copies", "Copy as curl")
    second = browser.text(f"{LAST} .facts")
    assert browser.run("return document.querySelectorAll('.answer').length") == 2
    assert "prompt 36" in facts and "prompt 36" not in second, "the first turn is in the second's prompt"


def test_escape_ends_an_answer_and_what_came_of_it_stays(console: Console) -> None:
    browser = console.open()
    console.ask("Write a long story about the sea.", **{"max-tokens": 900})
    browser.wait(f"{LAST} .facts", "tokens/s")
    assert browser.text("#stop") == "Stop"
    browser.press(ESCAPE)
    browser.wait(f"{LAST} .facts", "stopped")
    said = browser.text(f"{LAST} .text")
    until(lambda: console.server.metric("vllm:num_requests_running") == 0)
    assert said and browser.text(f"{LAST} .text") == said
    assert browser.text("#stop") == ""
    assert browser.run("return document.activeElement.id") == "question"


def test_the_end_of_an_answer_takes_nobody_from_where_they_read(console: Console) -> None:
    focused = "return document.activeElement.id || document.activeElement.hash"
    browser = console.open()
    browser.click("#suggestions button")
    browser.wait(f"{LAST} .facts", "tokens/s")
    browser.click("#stop")
    browser.wait(f"{LAST} .facts", "stopped")
    assert browser.run(focused) == "question", "not at a button that is hidden"
    console.ask(QUESTION, **{"max-tokens": 4})
    browser.run("document.querySelector('nav a[href=\"#state\"]').focus()")
    browser.wait(f"{LAST} .copies", "Copy as curl")
    assert browser.run(focused) == "#state"


def test_an_answer_goes_on_when_the_engine_dies_in_its_midst(console: Console) -> None:
    undisturbed = console.answer(max_tokens=32)
    [engine] = console.server.pids()["engine"]
    browser = console.open()
    console.ask(QUESTION, temperature=0, **{"max-tokens": 32})
    browser.wait(f"{LAST} .facts", "tokens/s")
    os.kill(engine, signal.SIGKILL)
    until(lambda: console.server.pids()["engine"] not in ([], [engine]))
    [next_engine] = console.server.pids()["engine"]
    os.kill(next_engine, signal.SIGSTOP)  # until the page has been seen
    browser.wait(f"{LAST} .waiting", "the answer goes on after that")
    before = browser.text(f"{LAST} .text")
    os.kill(next_engine, signal.SIGCONT)
    browser.wait(f"{LAST} .copies", "Copy as curl", timeout_s=60)
    text = browser.text(f"{LAST} .text")
    assert 0 < len(before) < len(text)
    assert "".join(text.split()) == "".join(undisturbed.split())
    assert browser.text(f"{LAST} .failure") == browser.text(f"{LAST} .waiting") == ""


def test_a_refusal_is_shown_in_the_servers_words_and_the_question_is_not_lost(console: Console) -> None:
    browser = console.open()
    console.ask(QUESTION, **{"max-tokens": 100000})
    assert "max_tokens" in browser.wait(f"{LAST} .failure", "100000")
    assert browser.run("return document.getElementById('question').value") == QUESTION


def test_state_and_server_tell_an_administrator_everything_and_a_guest_why_not(console: Console) -> None:
    console.answer(max_tokens=4)
    browser = console.open(view="#state")
    browser.wait("#tiles", "Running", "Engines ready", "1 of 1")
    until(lambda: "–" not in browser.text("#tiles").partition("KV cache in use")[2])
    assert browser.run("return document.querySelectorAll('.plot svg[role=img][aria-label]').length") == 6
    browser.click("nav a[href='#server']")
    browser.wait("#server", "smollm2-135m-instruct", "Keys", "guest", "admin", "float32", "settings")
    browser = console.open(console.guest, view="#state")
    browser.wait("#state-note", "admin right", "The API key guest may not do this")
    browser.click("nav a[href='#server']")
    browser.wait("#server", "smollm2-135m-instruct", "The API key guest may not do this: it has no admin right.")


def test_a_tab_that_nobody_sees_asks_for_nothing(console: Console) -> None:
    browser = console.open()
    looks = ("return performance.getEntriesByType('resource').filter(e => e.name.endsWith('/readyz'))"
             ".map(e => e.startTime)")
    seen = len(browser.run(looks))
    with browser.another_tab():
        time.sleep(2.5)
    until(lambda: len(browser.run(looks)) > seen)
    times = browser.run(looks)
    assert len(times) == seen + 1
    assert times[-1] - times[-2] > 2400, "not before it is seen again, and then at once"


HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>", "[x](javascript:alert(1)) ![y](https://other.example/i.png)",
    "[x](data:text/html,<script>alert(1)</script>)", "```html\n<b onclick=alert(1)>\n```", "[a](https://b.example/\"onx=\")",
    "[a](" + "(" * 5000, "<http://" * 3000, "\\(" * 5000, "$$" * 5001 + "a", "[a](h(" * 3000, "> - " * 3000 + "x",
    "*" * 5000 + "a", "[" * 5000, "> " * 3000 + "x", "`" * 3000 + "a" + "``" * 3000, "- " * 3000 + "x",
    "|-" * 3000 + "\n" + "|-" * 3000, "** _a" * 3000, "1. a\n" * 3000, "http://" * 3000,
]


def test_an_answer_becomes_text_and_elements_and_never_markup(console: Console) -> None:
    browser = console.open()
    made = browser.run("""
        return import('./console/markdown.js').then(({Markdown}) => arguments[0].map((text) => {
          let node;
          const times = [1, 2, 3].map(() => { // the least counts: others use this machine too
            node = document.createElement('div');
            const begun = performance.now();
            new Markdown(node).update(text);
            return performance.now() - begun;
          });
          const all = [...node.querySelectorAll('*')];
          return {names: [...new Set(all.map((e) => e.localName))], ms: Math.min(...times),
                  attributes: [...new Set(all.flatMap((e) => e.getAttributeNames()))],
                  links: all.map((e) => e.href).filter(Boolean), text: node.textContent};
        }))""", HOSTILE)
    assert len(made) == len(HOSTILE)
    for one in made:
        assert not set(one["names"]) & {"script", "img", "iframe", "svg", "b", "style"}
        assert not [name for name in one["attributes"] if name.startswith("on") or name in ("src", "style")]
        assert all(link.startswith(("https://", "http://")) for link in one["links"])
        assert one["ms"] < 1500, "linear"
    assert made[0]["text"] == HOSTILE[0]


def test_markdown_is_shown_as_meant_and_the_same_however_it_comes(console: Console) -> None:
    browser = console.open()
    formula = r"\[ a_1 * b_1 * \frac{1}{2} \]"
    text = ("# Title\n\nSome *soft* and **loud** `code_x` in snake_case_words, 2 * 3 * 4.\n\n"
            "1. one\n   - inner\n2. two\n\n> said\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n\n```py\nx = '<b>'\n```\nSee [it](https://a.example/).\n\n---\nend\n\n"
            "***both***, [page](https://a.example/b_(c)) and <https://d.example/e>\n\n" + formula + " costs $5\n\n"
            "- [ ] open\n- [x] done\n\n  more\n\n| l | r |\n|:--|--:|\n| `x\\|y` | 2 |\n| 3 | 4 |\n\n"
            "> said\n>\n> - again\n\n***Note:*** so\n")
    whole, pieces = browser.run("""
        return import('./console/markdown.js').then(({Markdown}) => {
          const [whole, pieces] = [document.createElement('div'), document.createElement('div')];
          new Markdown(whole).update(arguments[0]);
          const growing = new Markdown(pieces);
          for (let i = 0; i <= arguments[0].length; i++) growing.update(arguments[0].slice(0, i));
          return [whole.outerHTML, pieces.outerHTML];
        })""", text)
    assert whole == pieces
    for part in ("<h3>Title</h3>", "<em>soft</em>", "<strong>loud</strong>", "<code>code_x</code>",
                 "snake_case_words, 2 * 3 * 4",
                 "<ol><li>one<ul><li>inner</li></ul></li><li>two</li></ol>", "<blockquote><p>said</p></blockquote>",
                 "<td>1</td>", '<td class="middle">2</td>', '<td class="number">4</td>', "<code>x|y</code>",
                 "<strong><em>both</em></strong>", 'href="https://a.example/b_(c)"',
                 ">https://d.example/e</a>", f'<code class="formula">{formula}</code> costs $5', "<li>☐ open</li>",
                 "<li>☑ done<p>more</p></li>", "<ul><li>again</li></ul></blockquote>", "x = '&lt;b&gt;'</code>",
                 'href="https://a.example/"', "<hr><p>end</p>"):
        assert part in whole.replace(' dir="auto"', ""), (part, whole)


def test_what_of_a_growing_answer_is_there_already_is_not_made_again(console: Console) -> None:
    browser = console.open()
    kept = browser.run("""
        return import('./console/markdown.js').then(({Markdown}) => arguments[0].map(([head, line]) => {
          const node = document.createElement('div');
          const growing = new Markdown(node);
          let text = head + line.repeat(3);
          growing.update(text);
          const before = [...node.querySelectorAll('li, tr, blockquote > p')].slice(0, -1);
          for (const letter of line.repeat(2)) growing.update(text += letter);
          const after = [...node.querySelectorAll('li, tr, blockquote > p')];
          return [before.length, before.filter((one, i) => one === after[i]).length, after.length];
        }))""", [["", "- item **b**\n"], ["", "1. item\n\n   more\n\n"], ["| a | b |\n|---|---|\n", "| 1 | 2 |\n"],
                 ["", "> said\n>\n"]])
    assert kept == [[2, 2, 5], [2, 2, 5], [3, 3, 6], [2, 2, 5]]


def test_a_text_is_read_from_the_side_where_its_script_begins(console: Console) -> None:
    browser = console.open()
    sides = browser.run("""
        return import('./console/markdown.js').then(({Markdown}) => {
          const node = document.getElementById('turns');
          new Markdown(node).update(arguments[0]);
          const sides = [...node.querySelectorAll('p, li, blockquote, td, pre')]
            .map((e) => getComputedStyle(e).direction);
          node.replaceChildren();
          return sides;
        })""", "سلام\n\nEnglish\n\n1. أولا\n\n> نص\n\n| واحد | 1 |\n|---|---|\n| واحد | 1 |\n\n```\nنص\n```")
    assert sides == ["rtl", "ltr", "rtl", "rtl", "rtl", "rtl", "rtl", "ltr"]


def test_percentiles_and_rates_come_from_what_counters_grew_by(console: Console) -> None:
    browser = console.open()
    told = browser.run("""
        return import('./console/metrics.js').then(({parse, sampleOf, percentile, rate, hitRate}) => {
          const bucket = (le, count) => `vllm:time_to_first_token_seconds_bucket{engine="0",le="${le}"} ${count}`;
          const text = (counts, written, found) =>
            counts.map((count, i) => bucket(['0.1', '0.2', '+Inf'][i], count)).join('\\n')
            + `\\nvllm:generation_tokens_total{engine="0"} ${written}`
            + `\\nvllm:prefix_cache_queries_total{engine="0"} ${2 * found}`
            + `\\nvllm:prefix_cache_hits_total{engine="0"} ${found}`
            + '\\nvllm:num_requests_running{engine="0"} 2\\nvllm:num_requests_running{engine="1"} 3';
          const at = (...all) => sampleOf(parse(text(...all)), 0);
          const [first, second] = [at([5, 5, 5], 10, 40), {...at([5, 15, 15], 30, 60), time: 4000}];
          const anew = {...at([1, 2, 2], 8, 10), time: 4000};
          const middle = (before, after) => percentile(before, after, 'ttft', 0.5);
          return [middle(first, second), rate(first, second, 'written'), hitRate(first, second), second.running,
                  middle(first, first), rate(first, anew, 'written'), middle(first, anew)];
        })""")
    assert told == [pytest.approx(0.15), 5, 0.5, 5, None, 2, pytest.approx(0.1)]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_a_phone(console: Console, dark: bool) -> None:
    browser = console.open()
    browser.look(360, 720, dark)
    console.ask("Write a Python program in one very long line. " + "x" * 200, **{"max-tokens": 3})
    browser.wait(f"{LAST} .copies", "Copy as Python")
    for view in ("chat", "state", "server"):
        browser.click(f"nav a[href='#{view}']")
        browser.wait(f"#{view}-view")
        assert browser.run("return document.scrollingElement.scrollWidth") == 360, view
    browser.click("nav a[href='#chat']")
    right, bottom = browser.run("const box = document.getElementById('send').getBoundingClientRect();"
                                "return [box.right, box.bottom]")
    assert right <= 360 and bottom <= 720
    page, text = browser.run("const of = (e, name) => getComputedStyle(e)[name].match(/[0-9]+/g).map(Number);"
                             "return [of(document.documentElement, 'backgroundColor'), of(document.body, 'color')]")
    assert (sum(page) < sum(text)) is dark


def test_no_request_leaves_the_origin_and_the_policy_holds_it_there(console: Console) -> None:
    browser = console.open()
    console.ask("Repeat: ![picture](https://other.example/picture.png)", **{"max-tokens": 3})
    browser.wait(f"{LAST} .copies", "Copy")
    complaints = [text for text in browser.read_logs() if "Failed to load resource" not in text]  # refusals on purpose
    assert complaints == []
    assert len(browser.requests) > 20
    origin = console.server.url + "/"
    own = (origin, "about:", "data:", "chrome:", "chrome-untrusted:")  # the browser's own pages among them
    assert [url for url in browser.requests if not url.startswith(own)] == []
    tried = browser.run("""
        const failed = (promise) => promise.then(() => 'let through', (error) => error.name);
        const thrown = (f) => { try { f(); return 'let through'; } catch (error) { return error.name; } };
        return Promise.all([failed(fetch('http://127.0.0.1:9/')), failed(import('data:text/javascript,1')),
                            thrown(() => { document.body.innerHTML = '<p>'; })])""")
    assert tried == ["TypeError", "TypeError", "TypeError"]
    assert sum("Content Security Policy" in text for text in browser.read_logs()) >= 2
