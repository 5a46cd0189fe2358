"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}} with a status."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from m40llm.errors import (
    BusyError,
    DeadlineError,
    DeviceError,
    KernelContractError,
    M40LLMError,
    ModelFileError,
    NotServingError,
    RequestError,
)

KINDS: Final = {  # status -> the `type` of its errors
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "server_error",
    503: "server_error",
    504: "server_error",
}
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(\[\d+\]|\.[a-z_]+)*")


class ApiError(Exception):
    """What a client is told in place of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error")
        of = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": of}

    @property
    def content(self) -> bytes:
        """In ASCII: what came may hold what UTF-8 cannot say."""
        return json.dumps(self.body).encode("ascii")


def closing() -> ApiError:
    """For whoever comes, or is still there, when the server ends."""
    return ApiError(
        *(503, "the server is shutting down"), code="shutting_down", headers={"retry-after": "5"}
    )


def of_error(error: Exception) -> ApiError:
    """What a client is told of an error of ours, or of a bug."""
    told = str(error) or type(error).__name__
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, told, code="invalid_value", param=_param(told))
    if isinstance(error, BusyError):
        seconds = str(max(1, math.ceil(error.retry_after_s)))
        if isinstance(error, NotServingError):
            return ApiError(503, told, code="shutting_down", headers={"retry-after": seconds})
        return ApiError(429, told, code="queue_full", headers={"retry-after": seconds})
    if isinstance(error, DeadlineError):
        return ApiError(504, told, code="time_limit")
    if isinstance(error, DeviceError):
        return ApiError(500, told, code="device_error")
    if isinstance(error, ModelFileError):
        return ApiError(500, told, code="model_error")
    if isinstance(error, M40LLMError) and not isinstance(error, KernelContractError):
        return ApiError(500, told, code="server_error")
    return ApiError(500, "an error of the server's own; its log says more", code="internal_error")


def _param(told: str) -> str | None:
    """The field that an error's text begins with: "messages[0].role: expected ..."."""
    name, colon, _ = told.partition(":")
    return name if colon and _NAME.fullmatch(name) else None
