"""GET /v1/models and /v1/models/{id}. 503 until the model is loaded, so that scripts may wait for it."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app.errors import ApiError
from quire.app.openapi.operation import NAMES_MODEL, operation
from quire.app.schemas.models import ModelCard, ModelList, model_card
from quire.app.service import Service, key_of, service_of


def check_model(request: Request, name: str | None) -> str:
    """The name to show in the reply; requests may leave the model out.

    Raises ApiError: 404 for another model, 403 for one that the request's key may not use.
    """
    names = _names(request)
    if name in names:
        return name
    if name is None and names:
        return names[0]
    if name is None or name in service_of(request).settings.serve.model_names:
        raise ApiError(403, f"The API key {key_of(request).name} may not use {name or 'any model here'}.", "model")
    raise ApiError(404, f"The model `{name[:200]}` does not exist. This server has: {', '.join(names)}.", "model")


def _names(request: Request) -> list[str]:
    """Of the models that the request's key may use."""
    key = key_of(request)
    return [name for name in service_of(request).settings.serve.model_names if key.may_use(name)]


@operation("List the models", "models", gives=ModelList)
async def list_models(request: Request) -> Response:
    service = service_of(request)
    return _json(ModelList([_card(service, name) for name in _names(request)]))


@operation("Show a model", "models", gives=ModelCard, refuses=NAMES_MODEL)
async def show_model(request: Request) -> Response:
    return _json(_card(service_of(request), check_model(request, request.path_params["model"])))


def _card(service: Service, name: str) -> ModelCard:
    info = service.engine.require_info()
    settings = service.settings
    return model_card(name, settings.serve.engine.model, settings.started_at, info.max_model_len,
                      takes_images=service.engine.takes_images)


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
