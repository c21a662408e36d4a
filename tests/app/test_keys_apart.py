"""What one key may learn of another's prompts, and what a key's own limits can never take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from quire.app.keys.key import NEVER, Key, digest_of
from quire.app.keys.key_file import write_key_file
from quire.engine.frontend.media.loader import LoadedImages
from tests.app.fake_engine import FakeEngine

CHAT = {"messages": [{"role": "user", "content": "x"}]}
KEYS: dict[str, dict[str, Any]] = {
    "ann": {}, "bob": {}, "team-1": {"prefix_group": "team"}, "team-2": {"prefix_group": "team"}, "team": {},
    "few": {"max_concurrent": 2}, "slow": {"requests_per_minute": 2}}


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = str(tmp_path / "keys.yaml")
    write_key_file(path, [Key(name=name, sha256=digest_of(f"secret of {name}"), created=NEVER, **fields)
                          for name, fields in KEYS.items()])
    return path


async def ask(app: Starlette, key: str, path: str, body: dict[str, Any]) -> httpx.Response:
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.post(path, json=body, headers={"authorization": f"Bearer secret of {key}"})


async def salts(app: Starlette, fake: FakeEngine, *asked: tuple[str, str]) -> list[str]:
    for key, salt in asked:
        assert (await ask(app, key, "/v1/chat/completions", CHAT | {"cache_salt": salt})).status_code == 200
    return [arguments["cache_salt"] for _, _, arguments in fake.submitted[-len(asked):]]


async def test_only_keys_of_one_group_find_each_others_prefixes(make_app: Callable[..., Starlette], fake: FakeEngine,
                                                                key_file: str) -> None:
    app = make_app(api_key_file=key_file)
    asked = [("ann", ""), ("bob", ""), ("ann", "s"), ("team-1", ""), ("team-1", "s"), ("team", "")]
    found = await salts(app, fake, *asked)
    assert len(set(found)) == len(asked), "a client's own salt parts it further, and no name is another's group"
    assert await salts(app, fake, ("ann", ""), ("team-2", ""), ("team-2", "s")) == [found[0], found[3], found[4]]


async def test_the_switch_lets_all_keys_share_and_without_keys_nothing_is_kept_apart(
        make_app: Callable[..., Starlette], fake: FakeEngine, key_file: str) -> None:
    shared = make_app(api_key_file=key_file, share_prefixes=True)
    assert await salts(shared, fake, ("ann", ""), ("bob", ""), ("bob", "s")) == ["", "", "s"]
    assert await salts(make_app(), fake, ("nobody", ""), ("nobody", "s")) == ["", "s"]


class Loader:
    """Of images that nobody looks at."""

    def __init__(self) -> None:
        self.salts: list[str] = []

    def warm_up(self) -> None:
        pass

    async def load(self, images: Any, options: Any, salt: str) -> LoadedImages:
        self.salts.append(salt)
        return LoadedImages()


async def test_images_go_by_the_salt_of_their_prefix(make_app: Callable[..., Starlette], fake: FakeEngine,
                                                     key_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app, loader = make_app(api_key_file=key_file), Loader()
    monkeypatch.setattr(fake, "takes_images", True)
    monkeypatch.setattr(fake, "image_loader", lambda shared_by: loader, raising=False)
    chat = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}]}
    response = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}
    source = {"type": "url", "url": "data:"}
    message = {"max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
    asked = [("/v1/chat/completions", chat), ("/v1/responses", response), ("/v1/messages", message)]
    for path, body in asked:
        for key, salt in (("ann", ""), ("bob", ""), ("ann", "s")):
            reply = await ask(app, key, path, body | {"cache_salt": salt})
            assert reply.status_code == 200, reply.text
    assert loader.salts == [arguments["cache_salt"] for _, _, arguments in fake.submitted]
    assert len(set(loader.salts)) == 3


@pytest.mark.parametrize(("key", "said"), [("few", "may have 2 unfinished requests"),
                                           ("slow", "may have 2 requests a minute")])
async def test_more_prompts_than_a_key_may_ever_send_are_no_matter_of_time(
        make_app: Callable[..., Starlette], fake: FakeEngine, key_file: str, key: str, said: str) -> None:
    app = make_app(api_key_file=key_file)
    reply = await ask(app, key, "/v1/completions", {"prompt": ["a", "b", "c"]})
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
    assert not fake.submitted
    assert (await ask(app, key, "/v1/completions", {"prompt": ["a", "b"]})).status_code == 200
    num_before = len(fake.streams)
    reply = await ask(app, key, "/v1/embeddings", {"input": ["a", "b", "c"]})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input")
    assert said in reply.json()["error"]["message"]
    assert len(fake.streams) == num_before
    assert (await ask(app, key, "/v1/embeddings", {"input": ["a", "b"]})).status_code == 200
