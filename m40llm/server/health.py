"""/health and /metrics: for whoever watches the server."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from m40llm.server.errors import ApiError, closing
from m40llm.server.metrics import CONTENT_TYPE
from m40llm.server.replies import HealthReply, errors
from m40llm.server.serving import serving_of

router = APIRouter()


@router.get(
    "/health", response_model=HealthReply, responses=errors(400, 401, 404, 429, 500, 501, 504)
)
async def health(request: Request) -> Any:
    """200 while requests are taken; 503 once the server shuts down, or its device has failed."""
    serving = serving_of(request)
    stats = serving.service.stats()
    if serving.is_closing:
        raise closing()
    if stats.failure:
        raise ApiError(503, stats.failure, code="device_error")
    return {
        "status": "ok",
        "model": serving.settings.names[0],
        "slots": stats.n_slots,
        "running": stats.n_running,
        "waiting": stats.n_waiting,
    }


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **errors(400, 404, 429, 500, 501, 503, 504),
    },
)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(await serving_of(request).metrics_page(), media_type=CONTENT_TYPE)
