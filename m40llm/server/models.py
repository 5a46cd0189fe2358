"""Which models there are: the one that was loaded, by all its names, and its adapters."""

from typing import Any

from fastapi import APIRouter, Request

from m40llm.server.errors import ApiError
from m40llm.server.replies import ModelReply, ModelsReply, errors
from m40llm.server.serving import Serving, record_of, serving_of

router = APIRouter()


def resolved(request: Request, name: str) -> tuple[str, str | None]:
    """(what the answer calls the model, its adapter). ApiError for a name of none."""
    settings, record = serving_of(request).settings, record_of(request)
    if name not in settings.names + settings.loras:
        told = f"The model {name!r} does not exist; this server has "
        told += ", ".join(map(repr, settings.names + settings.loras))
        raise ApiError(404, told, code="model_not_found", param="model")
    record.model = name
    return name, name if name in settings.loras else None


@router.get("/v1/models", response_model=ModelsReply, responses=errors(400, 404, 429, 501, 504))
async def list_models(request: Request) -> Any:
    """The model's names, then its adapters."""
    serving = serving_of(request)
    names = serving.settings.names + serving.settings.loras
    return {"object": "list", "data": [_model(serving, name) for name in names]}


@router.get(
    "/v1/models/{model:path}", response_model=ModelReply, responses=errors(400, 429, 501, 504)
)
async def get_model(request: Request, model: str) -> Any:
    """One of them."""
    name, _ = resolved(request, model)
    return _model(serving_of(request), name)


def _model(serving: Serving, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": serving.created, "owned_by": "m40llm"}
