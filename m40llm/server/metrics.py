"""What Prometheus may ask: counts and times of requests, and the state of the service."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from m40llm.llm.service import Service

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_TTFT_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TPOT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)


class Metrics:
    """Of one server; each has a registry of its own."""

    def __init__(self, service: "Service") -> None:
        to = self._registry = CollectorRegistry()
        to.register(_State(service))
        ended = "m40llm_requests", "Requests ended"
        self.requests = Counter(*ended, ("endpoint", "status"), registry=to)
        self.errors = Counter("m40llm_errors", "Errors told, by code", ("code",), registry=to)
        first = "m40llm_ttft_seconds", "From a request's arrival to its first token"
        self.ttft_s = Histogram(*first, buckets=_TTFT_S, registry=to)
        more = "m40llm_tpot_seconds", "Of each token after an answer's first"
        self.tpot_s = Histogram(*more, buckets=_TPOT_S, registry=to)
        queue = "m40llm_queue_seconds", "In the queue, of each answer"
        self.queue_s = Histogram(*queue, buckets=_TTFT_S, registry=to)
        self.prompt_tokens = Counter("m40llm_prompt_tokens", "Tokens of prompts", registry=to)
        cached = "m40llm_cached_tokens", "Tokens of prompts that were in the cache"
        self.cached_tokens = Counter(*cached, registry=to)
        made = "m40llm_generated_tokens", "Tokens generated"
        self.generated_tokens = Counter(*made, registry=to)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _State(Collector):
    """What the service says of itself when asked."""

    def __init__(self, service: "Service") -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []  # so that registering asks nothing

    def collect(self) -> Iterator[Metric]:
        stats = self._service.stats()
        for name, about, value in (
            ("slots", "Requests that can run at once", stats.n_slots),
            ("slots_busy", "Requests that run", stats.n_running),
            ("queue_length", "Requests that wait", stats.n_waiting),
            ("kv_tokens", "Tokens in the KV cache", stats.kv_tokens),
            ("kv_capacity_tokens", "Tokens that the KV cache holds", stats.kv_capacity),
            ("failed", "1 while the device does not work", int(bool(stats.failure))),
        ):
            yield GaugeMetricFamily(f"m40llm_{name}", about, value=value)


def of_replicas(pages: Mapping[str, bytes]) -> bytes:
    """One page of several servers', told apart by the label `replica`."""
    families: dict[str, Metric] = {}
    for replica, page in pages.items():
        for family in text_string_to_metric_families(page.decode()):
            about = family.name, family.documentation, family.type
            into = families.setdefault(family.name, Metric(*about))
            for sample in family.samples:
                into.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    to = CollectorRegistry()
    to.register(_Fixed(families.values()))
    return generate_latest(to)


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
