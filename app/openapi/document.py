"""The OpenAPI 3.1 document of a list of routes, made of what their endpoints state and of msgspec's types.

What a type, a route or an operation knows is not written here again, so the document cannot contradict them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from starlette.routing import BaseRoute, Route

from quire import __version__
from quire.app.openapi.operation import EVENTS, JSON, LINES, Operation, operation_of
from quire.app.openapi.replies import (
    ANY_REQUEST_HEADERS,
    DEADLINE_HEADERS,
    HEADERS_OF,
    OF_CONNECTION,
    OF_KEYS,
    RATES,
    REPLY_HEADERS,
    REQUEST_HEADERS,
    STATUSES,
    ErrorReply,
)
from quire.app.openapi.schemas import Schemas

_ABOUT = """\
A language model behind the API of OpenAI and more. In a request's body, `null` stands for a field that is left out; a
field that is not known is refused by name. A method that a path does not have gets 405, an unknown path 404. What
arrives in no valid form, or too slowly, is refused before it is looked at, and then the connection is closed."""

_TAGS = {
    "generation": "Text from the model.",
    "embeddings": "Vectors from the model.",
    "models": "Which models there are.",
    "tokens": "The model's tokenizer, so that clients can count before they ask.",
    "health": "For load balancers, kubelets and scripts.",
    "operation": "For those who run the server; with `--admin-port` on that port only.",
    "documents": "This description.",
}
_STREAMS = {
    EVENTS: "Server-sent events, one a chunk: `data: ` and its JSON. The last is `data: [DONE]`. Lines that begin with "
            "a colon are comments.",
    LINES: "Lines of JSON. An empty one says that more will come.",
}


def document(routes: Sequence[BaseRoute], public: frozenset[str]) -> dict[str, Any]:
    """Of what `routes` serve; `public` are the paths that need no key. Takes some 50 ms."""
    stated = list(_stated(routes))
    schemas = Schemas(form for _, _, operation in stated for form in _types(operation))
    paths: dict[str, dict[str, Any]] = {}
    for route, method, operation in stated:
        needs_key = route.path not in public
        paths.setdefault(route.path_format, {})[method.lower()] = _described(route, method, operation, schemas,
                                                                             needs_key=needs_key)
    used = {operation.tag for _, _, operation in stated}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Quire", "version": __version__, "description": _ABOUT},
        # Where the document itself came from, whatever a proxy puts before it.
        "servers": [{"url": ".", "description": "this server"}],
        "tags": [{"name": name, "description": said} for name, said in _TAGS.items() if name in used],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "headers": {name: {"description": said, "schema": schema}
                        for name, (said, schema) in REPLY_HEADERS.items()},
            "parameters": {name: {"name": name, "in": "header", "description": said, "schema": schema}
                           for name, (said, schema) in REQUEST_HEADERS.items()},
            "responses": {str(status): _refusal(status, [ErrorReply], schemas) for status in STATUSES},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": (
                "A key of the server's; one that was started without keys asks for none.")}},
        },
    }


def _stated(routes: Sequence[BaseRoute]) -> Iterator[tuple[Route, str, Operation]]:
    for route in routes:
        if not isinstance(route, Route):
            continue
        operation = operation_of(route.endpoint)
        assert operation is not None, f"{route.path}: its endpoint has no @operation"
        if operation.is_listed:
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield route, method, operation


def _types(operation: Operation) -> Iterator[Any]:
    yield from (operation.takes, operation.gives, operation.error)
    yield from (*operation.other_media.values(), *operation.other_replies.values())


def _described(route: Route, method: str, operation: Operation, schemas: Schemas, *, needs_key: bool
               ) -> dict[str, Any]:
    told: dict[str, Any] = {"operationId": _id(route, method), "summary": operation.summary, "tags": [operation.tag]}
    if operation.description:
        told["description"] = operation.description
    if not needs_key:
        told["security"] = []
    headers = ANY_REQUEST_HEADERS | (DEADLINE_HEADERS if operation.has_deadlines else {})
    told["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                          for name in route.param_convertors]
    told["parameters"] += [{"$ref": f"#/components/parameters/{name}"} for name in headers]
    if operation.takes is not None:
        told["requestBody"] = {"required": True, "content": {JSON: {
            "schema": schemas.of(operation.takes), "example": operation.example}}}
    if operation.has_etag:
        told["parameters"].append({"$ref": "#/components/parameters/if-none-match"})
    refused = OF_CONNECTION | operation.refuses | (OF_KEYS if needs_key else frozenset())
    told["responses"] = {str(operation.status): _reply(operation, schemas)}
    for status in sorted(refused):
        forms = _forms(operation, status)
        told["responses"][str(status)] = ({"$ref": f"#/components/responses/{status}"} if forms == [ErrorReply] else
                                          _refusal(status, forms, schemas))
    if operation.has_etag:
        told["responses"]["304"] = {"description": "The client has it.", "headers": _headers(["x-request-id", "etag"])}
    return told


def _forms(operation: Operation, status: int) -> list[Any]:
    """Types of what comes with a `status` that refuses."""
    own = [operation.other_replies[status]] if status in operation.other_replies else []
    if operation.error is None:
        return [*own, ErrorReply]
    # The connection does not know whose path it is.
    return [*own, operation.error, *([ErrorReply] if status in OF_CONNECTION else [])]


def _id(route: Route, method: str) -> str:
    words = route.path_format.replace("{", "").replace("}", "").replace(".", "_").replace("-", "_").split("/")
    return "_".join([method.lower(), *filter(None, words)])


def _reply(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    content = {} if operation.gives is None else {JSON: {"schema": schemas.of(operation.gives)}}
    for media, form in operation.other_media.items():
        content[media] = {"schema": _text(media, form, operation.error or ErrorReply, schemas)}
    names = ["x-request-id", *(["warning"] if operation.takes is not None else []),
             *(["etag"] if operation.has_etag else []), *(RATES if 429 in operation.refuses else ())]
    return {"description": "The answer.", "content": content, "headers": _headers(names)}


def _text(media: str, form: Any, error: Any, schemas: Schemas) -> dict[str, Any]:
    """Of a body that is no JSON document. OpenAPI 3.1 has no word for "many of these", so a description says it."""
    if form is None:
        return {"type": "string"}
    return {"type": "string", "description": _STREAMS[media], "contentMediaType": media,
            "contentSchema": schemas.any_of([form, error])}


def _refusal(status: int, forms: list[Any], schemas: Schemas) -> dict[str, Any]:
    return {"description": STATUSES[status], "content": {JSON: {"schema": schemas.any_of(forms)}},
            "headers": _headers(["x-request-id", *HEADERS_OF.get(status, ())])}


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
