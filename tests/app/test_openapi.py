"""The OpenAPI document: all that is served is in it, and what is in it is what is served."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quire.app.openapi.document import document as describe
from quire.app.openapi.operation import EVENTS, READS_BODY, operation_of
from quire.app.openapi.operation import operation as states
from quire.app.openapi.replies import STATUSES
from quire.app.routes import DOCS_ROUTES, PUBLIC
from quire.app.schemas.described import HOLDS
from quire.app.schemas.responses import ResponsesRequest
from quire.engine.errors import EngineDeadError, OverloadedError
from quire.engine.messages import RateState
from tests.app.conftest import KEY
from tests.app.fake_engine import FakeEngine

Document = dict[str, Any]
CHAT = {"messages": [{"role": "user", "content": "Say hello."}]}
GENERATING = ("/v1/chat/completions", "/v1/completions", "/generate", "/v1/embeddings")


@pytest.fixture
async def document(client: httpx.AsyncClient) -> Document:
    found: Document = (await client.get("/openapi.json")).json()
    return found


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for name, value in part.items():
            assert name != HOLDS
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def follow(document: Document, part: Any) -> Any:
    if "$ref" not in part:
        return part
    found: Any = document
    for word in part["$ref"].removeprefix("#/").split("/"):
        found = found[word]
    return found


def check(document: Document, schema: Any, value: Any) -> None:
    """That `value` is what `schema`, a part of `document`, says."""
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": document["components"], **schema}
    jsonschema.Draft202012Validator(whole).validate(value)


def check_reply(document: Document, path: str, reply: httpx.Response) -> None:
    """That `reply` is one of those that the document has for `path`: status, headers, media type and content."""
    operation = document["paths"][path][reply.request.method.lower()]
    stated = follow(document, operation["responses"][str(reply.status_code)])
    media, _, _ = reply.headers["content-type"].partition(";")
    schema = stated["content"][media]["schema"]
    ours = {"x-request-id", "warning", "www-authenticate", "retry-after", "retry-after-ms", "x-should-retry", "etag"}
    named = {name for name in reply.headers if name in ours or name.startswith("x-ratelimit-")}
    assert named <= set(stated["headers"])
    if media == "application/json":
        check(document, schema, reply.json())
    elif "contentSchema" in schema:
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line and line != "data: [DONE]"]
        assert lines
        for line in lines:
            check(document, schema["contentSchema"], json.loads(line))


@pytest.fixture
def routes(make_app: Callable[..., Starlette]) -> list[Route]:
    return [route for route in make_app().routes if isinstance(route, Route)]


def test_every_route_states_what_it_takes_and_gives(routes: list[Route]) -> None:
    assert [route.path for route in routes if operation_of(route.endpoint) is None] == []


async def test_all_that_is_served_is_in_it(document: Document, routes: list[Route]) -> None:
    served = {(route.path_format, method.lower()) for route in routes for method in (route.methods or set()) - {"HEAD"}
              if (stated := operation_of(route.endpoint)) and stated.is_listed}
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == served
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in document["tags"]}
    assert {tag for methods in document["paths"].values() for of in methods.values() for tag in of["tags"]} == tags


async def test_its_references_lead_somewhere_and_its_schemas_are_schemas(document: Document) -> None:
    for reference in set(references(document)):
        assert follow(document, {"$ref": reference})
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert "contentSchema" in json.dumps(document)


async def test_it_says_of_each_field_what_it_is_for(document: Document) -> None:
    bodies = {path: follow(document, methods["post"]["requestBody"]["content"]["application/json"]["schema"])
              for path, methods in document["paths"].items() if "requestBody" in methods.get("post", {})}
    assert len(bodies) >= 9
    silent = [(path, name) for path, body in bodies.items() for name, field in body["properties"].items()
              if not field.get("description")]
    assert [one for one in silent if not one[0].startswith("/admin")] == []


async def test_what_the_responses_api_refuses_is_not_in_it(document: Document, client: httpx.AsyncClient) -> None:
    fields = document["components"]["schemas"]["ResponsesRequest"]["properties"]
    assert not fields.keys() & ResponsesRequest.OF_OTHERS.keys() and "top_p" in fields
    for name, other in ResponsesRequest.OF_OTHERS.items():
        reply = await client.post("/v1/responses", json={"input": "Hi", name: "any"})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == name
        for value in other.neutral:
            reply = await client.post("/v1/responses", json={"input": "Hi", name: value})
            assert reply.status_code == 200


async def test_public_is_what_it_calls_so(document: Document, guarded: httpx.AsyncClient) -> None:
    public = PUBLIC | {route.path for route in DOCS_ROUTES}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            reply = await guarded.request(method, path.replace("{model}", "m"))
            assert (operation.get("security") == []) is (path in public) is (reply.status_code != 401), path
            assert ("401" in operation["responses"]) is (path not in public)


async def test_its_examples_are_taken_and_answered_as_it_says(document: Document, client: httpx.AsyncClient,
                                                             fake: FakeEngine) -> None:
    fake.rate = RateState(60, 59, 1.0, 1000, 990, 0.6)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/admin"):
                continue  # of a server with keys, below
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            example = content and content["example"]
            if content:
                check(document, content["schema"], example)
            reply = await client.request(method, path.replace("{model}", "m"), json=example)
            assert reply.status_code == 200, (path, reply.text)
            check_reply(document, path, reply)


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 1, "prompt_logprobs": 1, "n": 2}),
    ("/v1/chat/completions", CHAT | {"stream": True, "logprobs": True, "top_logprobs": 1, "n": 2,
                                     "stream_options": {"include_usage": True}}),
    ("/v1/completions", {"prompt": ["ab", "cd"], "logprobs": 1, "prompt_logprobs": 1, "echo": True}),
    ("/v1/completions", {"prompt": [97, 98], "logprobs": 1, "stream": True,
                         "stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    ("/generate", {"prompt": "ab", "stream": True}),
    ("/v1/embeddings", {"input": [[97, 98], "cd"], "encoding_format": "base64"}),
    ("/tokenize", CHAT | {"return_token_strs": True}),
    ("/v1/completions", {"prompt": "ab", "tags": ["passed over"]}),
])
async def test_replies_of_every_form_are_as_it_says(document: Document, client: httpx.AsyncClient, path: str,
                                                    body: dict[str, Any]) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    check(document, content["schema"], body)
    reply = await client.post(path, json=body)
    assert reply.status_code == 200
    check_reply(document, path, reply)


async def test_a_stream_that_fails_ends_as_it_says(document: Document, client: httpx.AsyncClient, fake: FakeEngine
                                                   ) -> None:
    fake.fails_after = 2
    reply = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert '"error"' in reply.text
    check_reply(document, "/v1/chat/completions", reply)


async def test_refusals_are_as_it_says(document: Document, client: httpx.AsyncClient, guarded: httpx.AsyncClient,
                                       fake: FakeEngine) -> None:
    seen = set()

    async def see(path: str, **options: Any) -> None:
        reply = await client.post(path, **options)
        check_reply(document, path, reply)
        seen.add(reply.status_code)

    for path in GENERATING:
        body: dict[str, Any] = {"prompt": "x"} if "embed" not in path else {"input": "x"}
        body = CHAT if "chat" in path else body
        await see(path, json={"nonsense": 1})
        await see(path, json=body | {"model": "other"})
        await see(path, content=b"x" * 5000, headers={"content-type": "application/json"})
        await see(path, json=body, headers={"content-encoding": "gzip"})
        fake.gate.clear()
        await see(path, json=body, headers={"x-request-timeout": "0.01"})
        fake.gate.set()
        for refusal in (OverloadedError("full", 2.0, own_limit=True, rate=RateState(1, 0, 1.0, 1, 0, 1.0)),
                        OverloadedError("full", 2.0), EngineDeadError("gone"), RuntimeError("unforeseen")):
            fake.refuse, fake.refuses_after = refusal, len(fake.streams)
            await see(path, json=body)
        fake.refuse = None
        check_reply(document, path, await guarded.post(path, json=body))
    assert seen == {400, 404, 413, 415, 429, 500, 503, 504}
    check_reply(document, "/admin/status", await client.get("/admin/status"))  # 403


async def test_what_operators_see_is_as_it_says(document: Document, guarded: httpx.AsyncClient) -> None:
    guarded.headers["authorization"] = f"Bearer {KEY}"
    for method, path, body in (("GET", "/admin/status", None), ("GET", "/admin/keys", None), ("GET", "/metrics", None),
                               ("POST", "/admin/reload", None), ("POST", "/admin/log-level", {"level": "info"}),
                               ("POST", "/admin/log-level", {"level": "loud"})):
        check_reply(document, path, await guarded.request(method, path, json=body))


@pytest.mark.parametrize(("state", "silent_s"), [("ready", 0.0), ("loading", 0.0), ("gone", 0.0), ("ready", 1e6)])
async def test_probes_answer_as_it_says(document: Document, client: httpx.AsyncClient, fake: FakeEngine, state: str,
                                        silent_s: float) -> None:
    fake.state, fake.silent_s = state, silent_s
    fake.info = None if state == "loading" else fake.info
    for path in ("/livez", "/healthz", "/readyz", "/health", "/ping", "/startupz"):
        check_reply(document, path, await client.get(path))


async def test_ranges_are_those_that_are_kept(document: Document, client: httpx.AsyncClient) -> None:
    fields = document["components"]["schemas"]["CompletionRequest"]["properties"]
    needs: dict[str, dict[str, Any]] = {
        "length_penalty": {"use_beam_search": True}, "max_tokens": {"echo": True}, "min_tokens": {"max_tokens": 9}}
    seen = 0

    async def refused(name: str, value: float) -> bool:
        body = {"prompt": "x", "best_of": None} | needs.get(name, {}) | {name: value}
        reply = await client.post("/v1/completions", json=body)
        assert reply.status_code == 200 or reply.json()["error"]["param"] == name, reply.text
        return reply.status_code == 400

    for name, schema in fields.items():
        for part in schema.get("anyOf", [schema]):
            step = 1 if part.get("type") == "integer" else 1e-3
            bounds = [(part[word], sign) for word, sign in (("minimum", -1), ("maximum", 1)) if word in part]
            for bound, sign in bounds:
                assert not await refused(name, bound), name
                assert await refused(name, bound + sign * step * (10**3 if abs(bound) > 2**53 else 1)), name
                seen += 1
            if "exclusiveMinimum" in part:
                assert await refused(name, part["exclusiveMinimum"])
                assert not await refused(name, part["exclusiveMinimum"] + step)
    assert seen > 15


async def test_it_is_the_same_with_a_prefix_and_leads_back_there(make_app: Callable[..., Starlette]) -> None:
    app = make_app(root_path="/llm")
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        documents = [(await client.get(f"{prefix}/openapi.json")).json() for prefix in ("", "/llm")]
        assert documents[0] == documents[1] and [one["url"] for one in documents[0]["servers"]] == ["."]
        for route in DOCS_ROUTES:
            assert (await client.get(f"/llm{route.path}")).status_code == 200


class OtherError(msgspec.Struct):
    words: str


def test_an_api_may_have_errors_of_its_own() -> None:
    @states("Say it otherwise", "generation", gives=dict[str, Any], other_media={EVENTS: OtherError},
            refuses=READS_BODY, error=OtherError)
    async def endpoint(request: Request) -> Response:
        return Response()

    told = describe([Route("/other", endpoint, methods=["POST"])], frozenset())["paths"]["/other"]["post"]["responses"]
    own, anyones = {"$ref": "#/components/schemas/OtherError"}, {"$ref": "#/components/schemas/ErrorReply"}
    assert told["413"]["content"]["application/json"]["schema"] == own
    assert told["408"]["content"]["application/json"]["schema"] == {"anyOf": [own, anyones]}
    assert told["200"]["content"]["text/event-stream"]["schema"]["contentSchema"] == {"anyOf": [own, own]}


def test_statuses_are_those_that_errors_have_names_for() -> None:
    from quire.app.errors import _TYPES

    assert set(STATUSES) <= set(_TYPES)
