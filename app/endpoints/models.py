"""GET /v1/models and /v1/models/{id}. 503 until the model is loaded, so that scripts may wait for it."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.errors import ApiError
from app.schemas.models import ModelCard, ModelList, model_card
from app.service import Service, service_of
from engine.errors import OverloadedError


def check_model(service: Service, name: str | None) -> str:
    """The name to show in the reply; requests may leave the model out. Raises ApiError (404) for another model."""
    names = service.settings.serve.model_names
    if name is None:
        return names[0]
    if name not in names:
        raise ApiError(404, f"The model `{name[:200]}` does not exist. This server has: {', '.join(names)}.", "model")
    return name


async def list_models(request: Request) -> Response:
    service = service_of(request)
    return _json(ModelList([_card(service, name) for name in service.settings.serve.model_names]))


async def show_model(request: Request) -> Response:
    service = service_of(request)
    return _json(_card(service, check_model(service, request.path_params["model"])))


def _card(service: Service, name: str) -> ModelCard:
    info = service.engine.info
    if info is None:
        phase, fraction = service.engine.loading
        raise OverloadedError(f"The model is not ready yet: {phase}, {fraction:.0%}.", retry_after_s=5.0)
    settings = service.settings
    return model_card(name, settings.serve.engine.model, settings.started_at, info.max_model_len)


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
