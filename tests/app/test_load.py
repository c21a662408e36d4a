"""/load counts what is being answered, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
from starlette.applications import Starlette

from tests.app.fake_engine import FakeEngine


async def test_a_running_request_is_load_and_asking_for_the_load_is_none(
        make_app: Callable[..., Starlette], fake: FakeEngine) -> None:
    app = make_app()
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        begun, may_end = asyncio.Event(), asyncio.Event()
        submit = fake.submit

        async def submit_late(*args: object, **kwargs: object) -> object:
            begun.set()
            await may_end.wait()
            return await submit(*args, **kwargs)

        fake.submit = submit_late  # type: ignore[assignment, method-assign]
        assert (await client.get("/load")).json() == {"server_load": 0}
        running = asyncio.create_task(client.post("/v1/completions", json={"prompt": "x"}))
        await begun.wait()
        assert (await client.get("/load")).json() == {"server_load": 1}
        may_end.set()
        assert (await running).status_code == 200
        assert (await client.get("/load")).json() == {"server_load": 0}


async def test_the_load_needs_a_key_where_there_are_any(guarded: httpx.AsyncClient) -> None:
    assert (await guarded.get("/load")).status_code == 401
    reply = await guarded.get("/load", headers={"authorization": "Bearer other"})
    assert reply.json() == {"server_load": 0}
