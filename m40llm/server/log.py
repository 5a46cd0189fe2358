"""Structured logs: one JSON object a line, on stderr."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Final, TextIO

LOGGER: Final = logging.getLogger("m40llm.server")
_OTHERS: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "sse_starlette", "asyncio")


def log(
    event: str, level: int = logging.INFO, *, exc: BaseException | None = None, **of: Any
) -> None:
    """One line: the time, the level, the event, and what else there is to say of it."""
    LOGGER.log(level, event, extra={"fields": of}, exc_info=exc)


class JsonLines(logging.Formatter):
    """{"time", "level", "event", ...}: our fields, or another library's message."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower()}
        if record.name == LOGGER.name:
            line["event"] = record.getMessage()
            line |= getattr(record, "fields", {})
        else:
            line |= {"event": "library", "logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, default=str)


def configure(stream: TextIO | None = None) -> None:
    """Our lines and those of the libraries below go to the stream, and nowhere else."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines())
    for name in ("m40llm", *_OTHERS):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], False
    for name in ("m40llm", "uvicorn", "sse_starlette", "asyncio"):
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("m40llm").setLevel(logging.INFO)
    for name in _OTHERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").propagate = True  # to "uvicorn"
