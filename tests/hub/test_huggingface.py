"""`hf:` names, against a local server that answers as the hub does."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import CONTENT, FakeHub, fake_hub

from m40llm import hub
from m40llm.errors import PullError
from m40llm.hub.huggingface import parse_name
from m40llm.progress import BytesDone

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
NAME = "hf:me/things/q4/a.gguf"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_address[1]}")
        yield running


def test_parse_name() -> None:
    assert parse_name(NAME) == ("me/things", "q4/a.gguf")


def test_pull_then_offline(server: FakeHub, cache: Path) -> None:
    told: list[tuple[str, float]] = []
    path = hub.pull(NAME, progress=lambda stage, fraction: told.append((stage, fraction)))
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache / "hf")
    assert ("download", 1.0) in told
    sizes = {fraction.n_total for _, fraction in told if isinstance(fraction, BytesDone)}
    assert sizes == {len(CONTENT)}
    assert told[-1] == ("check", 1.0)
    n_requests = len(server.requests)
    assert hub.resolve(NAME) == path
    assert len(server.requests) == n_requests  # what is in the cache asks nobody
    assert [m.name for m in hub.list_models() if m.path] == [NAME]
    assert hub.pull(NAME, force=True) == path
    assert len(server.requests) > n_requests


def test_a_broken_connection_is_resumed(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    # huggingface_hub keeps whole chunks only: 10 MB of them as it comes.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    server.n_broken = 1
    assert hub.pull(NAME).read_bytes() == CONTENT
    ranges = [wanted for method, _, wanted in server.requests if method == "GET"]
    resumed_at = int((ranges[-1] or "").removeprefix("bytes=").removesuffix("-"))
    assert len(CONTENT) // 2 - 1000 < resumed_at <= len(CONTENT) // 2


def test_what_a_killed_download_left_goes(server: FakeHub, cache: Path) -> None:
    stale = cache / "hf" / "models--me--things" / "blobs" / "abc.12345678.incomplete"
    stale.parent.mkdir(parents=True)
    stale.touch()
    hub.pull(NAME)
    assert not stale.exists()


def test_wrong_checksum(server: FakeHub) -> None:
    server.etag = "0" * 64
    with pytest.raises(PullError, match=r"expected sha256 0000.*nothing was kept"):
        hub.pull(NAME)
    assert not [m for m in hub.list_models() if m.path]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf:me/things/b.gguf", "me/things has no file b.gguf"),
        ("hf:private/things/a.gguf", "no repository private/things, or it is private.*HF_TOKEN"),
        ("hf:gated/things/a.gguf", "accept its terms.*HF_TOKEN"),
    ],
)
def test_refusals(server: FakeHub, name: str, told: str) -> None:
    with pytest.raises(PullError, match=told):
        hub.pull(name)


def test_nobody_answers(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Said once, by our error: the library's word on each attempt is not shown."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between its attempts
    with pytest.raises(PullError, match=r"http://127.0.0.1:9 cannot be reached"):
        hub.pull(NAME)
    assert capfd.readouterr().err == ""


def test_without_the_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PullError, match="pip install huggingface_hub"):
        hub.pull(NAME)
