"""`m40llm serve`: a server for OpenAI's clients, and a chat in the browser."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m40llm.cli import memory_options as mem
from m40llm.cli import options as opt
from m40llm.cli import serve_options as own
from m40llm.cli.guard import guarded
from m40llm.cli.output import print_json, progress_bar, status, tell_load
from m40llm.errors import RequestError
from m40llm.progress import silent

if TYPE_CHECKING:
    from m40llm.llm.service import Service
    from m40llm.server.settings import Settings

PACKAGES = ("fastapi", "uvicorn", "sse_starlette", "pydantic", "prometheus_client")
RAY = "ray"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@guarded
def serve(
    model: opt.Model,
    host: own.Host = "127.0.0.1",
    port: own.Port = 8000,
    name: own.Name = None,
    slots: own.Slots = 4,
    max_waiting: own.MaxWaiting = 64,
    chunk: own.Chunk = None,
    batch_invariant: own.BatchInvariant = True,
    lora: own.Adapters = None,
    api_key_file: own.ApiKeyFile = None,
    open_metrics: own.OpenMetrics = False,
    allowed_host: own.AllowedHost = None,
    trusted_proxy: own.TrustedProxy = None,
    cors_origin: own.CorsOrigin = None,
    max_body: own.MaxBody = 8_000_000,
    max_prompt: own.MaxPrompt = None,
    max_tokens: own.MaxTokens = None,
    time_limit: own.TimeLimit = None,
    send_timeout: own.SendTimeout = 30.0,
    head_timeout: own.HeadTimeout = 10.0,
    body_timeout: own.BodyTimeout = 60.0,
    max_connections: own.MaxConnections = 512,
    grace: own.Grace = 10.0,
    log_prompts: own.LogPrompts = False,
    ray: own.Ray = False,
    replicas: own.Replicas = None,
    max_replicas: own.MaxReplicas = None,
    device: opt.Device = "auto",
    max_seq_len: opt.MaxSeqLen = None,
    kv_type: opt.KVType = None,
    cublas: opt.Cublas = None,
    require_sm52: opt.RequireSm52 = False,
    gpu_layers: mem.GpuLayers = None,
    fit: mem.Fit = False,
    decode: opt.Decode = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Serve a model over HTTP: for any client of OpenAI's API, and as a web page to chat on.

    Many requests run at once. When all slots and the queue are full, the next one is told to come
    again later. The log is one JSON object a line on stderr; docs/server.md describes everything.
    With --json, stdout gets one document when the server is ready.

    \b
    Examples:
      m40llm serve smollm2                  # then open http://127.0.0.1:8000
      m40llm serve smollm2 --slots 8 --max-seq-len 2048 --port 0 --json
      m40llm serve model.gguf --host 0.0.0.0 --api-key-file keys.txt --time-limit 120
      m40llm serve model.gguf --ray --replicas 4       # a card each

    \b
    Ask it:
      curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
        -d '{"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}]}'
    """
    _check_packages()
    from m40llm.server.keys import VARIABLE, read_keys
    from m40llm.server.run import bound, is_loopback, run, url_of
    from m40llm.server.serving import head
    from m40llm.server.settings import Settings

    adapters = _adapters(lora or [])
    keys = read_keys(api_key_file, os.environ.get(VARIABLE))
    is_private = is_loopback(host) and not keys
    settings = Settings(
        names=tuple(name or (_short(model),)),
        loras=tuple(adapters),
        keys=keys,
        hosts=_hosts(host, allowed_host or [], is_private=is_private),
        trusted_proxies=tuple(trusted_proxy or ()),
        max_body_bytes=max_body,
        max_prompt=max_prompt,
        max_tokens=max_tokens,
        time_limit_s=time_limit,
        send_timeout_s=send_timeout,
        head_timeout_s=head_timeout,
        body_timeout_s=body_timeout,
        max_connections=max_connections,
        grace_s=grace,
        open_metrics=open_metrics,
        cors_origins=tuple(cors_origin or ()),
        log_prompts=log_prompts,
    )
    how: dict[str, Any] = {"slots": slots, "max_waiting": max_waiting, "chunk": chunk}
    how |= {"device": device, "max_seq_len": max_seq_len, "kv_type": kv_type, "cublas": cublas}
    how |= {"require_sm52": require_sm52, "gpu_layers": mem.gpu_layers(gpu_layers), "fit": fit}
    how |= {"decode": decode, "lora": adapters, "batch_invariant": batch_invariant}
    if not keys and not is_private:
        status(f"note: no API keys were given: whoever reaches {host} may use this server")
    if ray:
        count = (replicas, max_replicas)
        _replicas(model, how, settings, bool(name), host, port, count, as_json)
        return
    if (replicas, max_replicas) != (None, None):
        raise RequestError("replicas: they need --ray")
    with closing(bound(host, port)) as at, _loaded(model, **how) as service:
        if not name:
            settings = settings.also_named(service.llm.path.stem)
        said = head(service, settings) | {"url": url_of(at)}
        run(service, settings, at, lambda: _ready(said, as_json))


def _hosts(host: str, allowed: list[str], *, is_private: bool) -> tuple[str, ...]:
    """Names in the Host header that are answered; none: all."""
    own = (*LOOPBACK, host.lower()) if is_private or allowed else ()
    return tuple(dict.fromkeys((*own, *map(str.lower, allowed))))


def _ready(head: dict[str, Any], as_json: bool) -> None:
    each = f"{head['replicas']} replicas, each with " if "replicas" in head else ""
    status(
        f"serving {head['model']} at {head['url']} on {head['device']}: {each}{head['slots']} "
        f"slots of {head['max_seq_len']:,} tokens; Ctrl-C ends it"
    )
    if as_json:
        print_json(head)


def _replicas(
    model: str,
    how: dict[str, Any],
    settings: "Settings",
    is_named: bool,
    host: str,
    port: int,
    count: tuple[int | None, int | None],
    as_json: bool,
) -> None:
    """Under Ray Serve; the model is fetched, and the port tried, before anything is started."""
    if find_spec(RAY) is None:
        raise RequestError('ray: no such package; run: pip install "m40llm[ray]"')
    if how["device"].startswith("cuda:"):
        told = "Ray gives each replica a card of its own, got"
        raise RequestError(f"device: expected cuda, auto, cpu or emulator: {told} {how['device']}")
    from m40llm import hub
    from m40llm.server.replicas import ADDRESS, Count, Plan, run
    from m40llm.server.run import bound, url_of

    least = 1 if count[0] is None else count[0]
    wanted = Count(least, least if count[1] is None else count[1])
    with progress_bar() as bar:
        file = hub.resolve(model, progress=bar).resolve()
    with closing(bound(host, port)) as at:
        url, port = url_of(at), at.getsockname()[1]
    if not ADDRESS:  # a cluster's other machines have files of their own
        model = str(file)
        how["lora"] = {name: str(Path(path).resolve()) for name, path in how["lora"].items()}
    plan = Plan(model, how, settings, is_named, host, port, wanted)
    run(plan, lambda head: _ready(head | {"url": url}, as_json))


@contextmanager
def _loaded(model: str, **how: Any) -> Iterator["Service"]:
    """The service, with a progress bar until it is there; closed at the end."""
    from m40llm.llm.service import Service

    with progress_bar() as bar:
        tell = [bar]  # a reload, or a kernel compiled in a request, is told to nobody
        service = Service.load(model, progress=lambda *what: tell[0](*what), **how)
        tell[0] = silent
    with service:
        tell_load(service.llm, how["decode"], has_fit=how["fit"])
        yield service


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        lacks = ", ".join(missing)
        told = 'run: pip install "m40llm[server]" (in a clone of it: pip install ".[server]")'
        raise RequestError(f"the server needs {lacks}; {told}")


def _adapters(pairs: list[str]) -> dict[str, str]:
    """name -> file, of --lora NAME=FILE."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not name or not equals or not file:
            raise RequestError(f"lora: expected NAME=FILE, got {pair!r}")
        if name in found:
            raise RequestError(f"lora: {name} is given twice")
        if not Path(file).is_file():
            raise RequestError(f"lora: no such file: {file}")
        found[name] = file
    return found


def _short(model: str) -> str:
    """A known name as it is; of a path, the file's name."""
    return Path(model).name.removesuffix(".gguf") or model
