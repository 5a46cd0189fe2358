"""Settings: what serving was asked to be like, checked."""

from dataclasses import dataclass, field, replace
from typing import Final

from m40llm.errors import RequestError

_LONGEST_S: Final = 1e6


@dataclass(frozen=True)
class Settings:
    """RequestError names a field that is out of range.

    names           what clients may call the model; the first is what answers call it
    loras           names of the adapters that were loaded, served as models of their own
    keys            API keys, any one of which opens the server; none: it is open
    max_body_bytes  of a request
    max_prompt      tokens of a prompt; None: as many as the context holds
    max_tokens      of an answer; None: as many as the context holds
    time_limit_s    of a request, from its arrival on; None: as long as it takes
    send_timeout_s  a client that takes nothing of its answer for so long is cut
    head_timeout_s  a connection has so long for the head of a request
    body_timeout_s  a request has so long for its body
    max_connections  at once; more are told to come again
    grace_s         for what is under way when the server is told to end
    open_metrics    /metrics needs no key
    hosts           names in the Host header that are answered; none: all. A page of another site
                    can make its own name mean 127.0.0.1, but cannot change that header
    trusted_proxies  addresses whose X-Forwarded-For says who the client is
    cors_origins    pages of other origins that may ask; "*": all
    log_prompts     prompts and answers are logged, too
    """

    names: tuple[str, ...]
    loras: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=(), repr=False)
    max_body_bytes: int = 8_000_000
    max_prompt: int | None = None
    max_tokens: int | None = None
    time_limit_s: float | None = None
    send_timeout_s: float = 30.0
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    max_connections: int = 512
    grace_s: float = 10.0
    open_metrics: bool = False
    hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False

    def __post_init__(self) -> None:
        called = self.names + self.loras
        if not self.names or not all(called):
            raise RequestError(f"names: expected a name for the model, got {called!r}")
        if len(set(called)) < len(called):
            raise RequestError(f"names: expected each once, got {', '.join(called)}")
        for name in ("max_body_bytes", "max_prompt", "max_tokens", "max_connections"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name}: expected an integer from 1, got {value}")
        for name in ("time_limit_s", "send_timeout_s", "head_timeout_s", "body_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RequestError(f"{name}: expected seconds above 0, got {value}")
        if not 0 <= self.grace_s <= _LONGEST_S:
            told = f"expected seconds from 0 to {_LONGEST_S:g}, got {self.grace_s}"
            raise RequestError(f"grace_s: {told}")

    def also_named(self, name: str) -> "Settings":
        """With one more name, unless something is called so already."""
        if name in self.names + self.loras:
            return self
        return replace(self, names=(*self.names, name))
