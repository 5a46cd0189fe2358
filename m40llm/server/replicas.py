"""Replicas: the server several times over, each a process with a model of its own, by Ray Serve.

Ray starts the processes, gives each request to one of them, starts one anew that died, and more or
fewer as the load goes. Everything else is the server's own. Needs the extra `ray`.

Of what is Ray's own, nothing listens beyond 127.0.0.1 unless RAY_ADDRESS names a cluster.
"""

import asyncio
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of a log that are alike are lines all the same
os.environ.setdefault("RAY_COLOR_PREFIX", "0")
ADDRESS: Final = os.environ.get("RAY_ADDRESS")
if not ADDRESS:
    # Ray's way to say that there is one machine only: all of it then talks over the loopback.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # its default, of which it would warn

import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.exceptions import TaskCancelledError  # noqa: E402
from ray.serve._private import replica as ray_replica  # noqa: E402
from starlette.datastructures import MutableHeaders  # noqa: E402
from starlette.types import ASGIApp, Message, Receive, Scope, Send  # noqa: E402

import m40llm.errors  # noqa: E402
from m40llm.errors import DeviceError, M40LLMError, RequestError  # noqa: E402
from m40llm.server.app import create_app  # noqa: E402
from m40llm.server.log import configure, log  # noqa: E402
from m40llm.server.metrics import of_replicas  # noqa: E402
from m40llm.server.serving import head  # noqa: E402
from m40llm.server.settings import Settings  # noqa: E402

NAME: Final = "m40llm"  # of Ray's application, and of its deployment
_MANY: Final = 1_000_000  # Ray holds nothing back: each replica has its own queue and limits
_TELLS: Final = re.compile(r"^m40llm\.errors\.(\w+): (.+)$", re.M)


@dataclass(frozen=True)
class Count:
    """How many replicas: `least`, and up to `most` under load. RequestError for what cannot be."""

    least: int = 1
    most: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            told = f"expected at least {self.least}, as many as --replicas, got {self.most}"
            raise RequestError(f"max_replicas: {told}")


@dataclass(frozen=True)
class Plan:
    """What each replica is made of, and where clients reach them all.

    model     a file or a name; on a cluster each machine finds its own
    how       arguments of Service.load
    is_named  the settings have the names that the user gave, and no others
    """

    model: str
    how: dict[str, Any]
    settings: Settings
    is_named: bool
    host: str
    port: int
    count: Count


@serve.ingress()
class Replica:
    """A server without a socket; Ray hands it requests."""

    def __init__(self, plan: Plan, is_local: bool) -> None:
        from m40llm.llm.service import Service

        configure()
        if is_local:
            _stay_on_loopback()
        self._service = Service.load(plan.model, **plan.how)
        self._settings = plan.settings
        if not plan.is_named:
            self._settings = plan.settings.also_named(self._service.llm.path.stem)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(self._service, self._settings)
        self._serving = app.state.serving
        self._serving.metrics_page = self._pages
        return _Told(app)

    def check_health(self) -> None:
        """Ray asks every few seconds, and starts another replica in place of one that fails."""
        failure = self._service.stats().failure
        if failure:
            raise DeviceError(failure)

    def head(self) -> dict[str, Any]:
        return head(self._service, self._settings)

    def page(self) -> tuple[str, bytes]:
        """(which replica this is, its metrics)"""
        return serve.get_replica_context().replica_id.unique_id, self._serving.metrics.page()

    async def close(self) -> None:
        """As at SIGTERM: no more requests; what is under way has its time to end."""
        self._serving.is_closing = True
        await asyncio.to_thread(self._service.close, self._settings.grace_s)

    async def _pages(self) -> bytes:
        asked = serve.get_deployment_handle(NAME, NAME).broadcast("page")
        found = await asked.results_async(timeout_s=5, return_exceptions=True)
        return of_replicas(dict(one for one in found if isinstance(one, tuple)))


class _Told:
    """Around the application, what Ray does otherwise than ASGI and other servers.

    Where the client has gone away, its `receive` raises. And it adds an x-request-id, the same as
    ours, which is taken away.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        async def received() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await self._app(scope, received, without)


def run(plan: Plan, ready: Callable[[dict[str, Any]], None]) -> None:
    """Serves until SIGTERM or SIGINT; `ready` is told what the first replica says of itself."""
    configure()
    logging.getLogger("ray").setLevel(logging.WARNING)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    how: dict[str, Any] = {"logging_level": logging.WARNING, "include_dashboard": False}
    try:
        ray.init(address=ADDRESS or "local", **({} if ADDRESS else how))
    except ConnectionError as error:
        raise RequestError(f"ray: RAY_ADDRESS is {ADDRESS}: {error}") from error
    try:
        signals = _Signals()
        handle = _started(plan)
        ready(handle.head.remote().result() | {"replicas": plan.count.least})
        log("closing", reason=signals.wait(), grace_s=plan.settings.grace_s)
        _close(handle, plan.settings.grace_s)
    finally:
        if ADDRESS:
            serve.shutdown()  # it would go on there without us
        ray.shutdown()


def _started(plan: Plan) -> Any:
    """Ray's handle of the replicas, once all of them serve."""
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    at = {"host": plan.host, "port": plan.port}
    needs = {"num_cpus": 1, "num_gpus": _gpus(plan)}
    serve.start(proxy_location="HeadOnly", http_options=at, logging_config=quiet)
    deployment = serve.deployment(
        Replica,
        name=NAME,
        ray_actor_options=needs,
        max_ongoing_requests=_MANY,
        graceful_shutdown_timeout_s=plan.settings.grace_s + 5,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2,
        logging_config=quiet,
        **_scale(plan),
    )
    try:
        return serve.run(deployment.bind(plan, not ADDRESS), name=NAME, logging_config=quiet)
    except RuntimeError as error:
        raise _told(error) from error


def _scale(plan: Plan) -> dict[str, Any]:
    least, most = plan.count.least, plan.count.most
    if least == most:
        return {"num_replicas": least}
    bounds = {"min_replicas": least, "initial_replicas": least, "max_replicas": most}
    return {"autoscaling_config": bounds | {"target_ongoing_requests": plan.how["slots"]}}


def _gpus(plan: Plan) -> int:
    """Of each replica. RequestError where Ray has too little for the fewest replicas."""
    has = ray.cluster_resources()
    device, least = plan.how["device"], plan.count.least
    n_gpus = int(device == "cuda" or (device == "auto" and has.get("GPU", 0) >= 1))
    what, n = ("cards", has.get("GPU", 0)) if n_gpus else ("CPU cores", has.get("CPU", 0))
    if n < least:
        raise RequestError(f"replicas: {least} of them need as many {what}; Ray has {n:g}")
    return n_gpus


def _told(error: RuntimeError) -> Exception:
    """What the replica's own error was, of the text in which Ray tells it."""
    status = serve.status().applications[NAME]
    texts = [status.message, *(one.message for one in status.deployments.values())]
    for name, text in _TELLS.findall("\n".join(texts)):
        kind = getattr(m40llm.errors, name, None)
        if isinstance(kind, type) and issubclass(kind, M40LLMError):
            return kind(text)
    return error


def _close(handle: Any, grace_s: float) -> None:
    """All replicas end as a server does; only then does Ray."""
    try:
        handle.broadcast("close").results(timeout_s=grace_s + 10, return_exceptions=True)
    except TimeoutError:
        log("replicas did not close in time", logging.WARNING)
    serve.delete(NAME)


class _Signals:
    """SIGTERM and SIGINT: while the replicas start they end it, then the first one is waited for.

    The second one does not wait.
    """

    def __init__(self) -> None:
        self._is_waited_for, self._n, self._first = False, 0, ""
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, self._take)

    def wait(self) -> str:
        """The first one's name."""
        self._is_waited_for = True
        while not self._n:
            time.sleep(0.1)
        return self._first

    def _take(self, which: int, frame: FrameType | None) -> None:
        self._n += 1
        self._first = self._first or signal.Signals(which).name
        if not self._is_waited_for:
            raise KeyboardInterrupt
        if self._n == 2:
            ray.shutdown()  # ends the processes, whatever they do
        if self._n >= 2:
            os._exit(128 + which)


def _stay_on_loopback() -> None:
    """Each replica's server for other deployments, of which there are none, binds all addresses.

    Whoever reaches it can have the process run anything (it unpickles), and Ray has no setting for
    it: the function with which Ray opens the port is replaced in this process. `pyproject.toml`
    names the versions of Ray of which this is known, and tests/server/test_ray.py looks.
    """
    opened = ray_replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> Any:
        return opened(server, address.replace("[::]", "127.0.0.1"))

    ray_replica.add_port_to_grpc_server = on_loopback
