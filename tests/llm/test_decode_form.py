"""decode="auto": what is chosen, what is remembered, and what is not believed."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from m40llm import LLM, SamplingParams
from m40llm.device.cpu.ops import CpuOps
from m40llm.device.decoder import FORMS, Answer, Form, SlotRequest
from m40llm.engine import engine as engine_module
from m40llm.engine import request as request_module
from m40llm.engine.decode_step import DecodeForm
from m40llm.engine.decode_timing import N_CHECKED, N_REPEATS, N_TIMED
from m40llm.engine.engine import Engine
from m40llm.errors import DeviceError, RequestError
from m40llm.llm import decode_form as rooms
from m40llm.llm.decode_form import fastest
from m40llm.testing import write_tiny_gguf

RUNS = (
    2 + N_REPEATS
)  # of a form: one to check it, one to see how long it takes, and those that count
Change = Callable[[Form, Answer], Answer]


def _as_it_is(form: Form, answer: Answer) -> Answer:
    return answer


@dataclass
class FakeDecoder:
    """A decoder whose tokens take the milliseconds that a test says, by a clock of its own."""

    ms: dict[str, float] = field(
        default_factory=lambda: {"host": 4.0, "eager": 3.0, "graph": 1.0, "persistent": 2.0}
    )
    forms: tuple[Form, ...] = FORMS
    device: str = "Tesla M40, sm_52, code for sm_52, driver 535.54 (CUDA 12.2)"
    max_bias: int = 64
    max_stop_ids: int = 16
    change: Change = _as_it_is
    now_ms: float = 0.0
    n_tokens: dict[str, int] = field(default_factory=dict)
    n_left: int = 0
    found: list[Answer] = field(default_factory=list)
    n_recovered: int = 0

    def perf_counter(self) -> float:
        return self.now_ms / 1e3

    def spend(self, form: str) -> None:
        self.n_tokens[form] = self.n_tokens.get(form, 0) + 1
        self.now_ms += self.ms[form]

    def why_not(self, form: Form) -> str:
        return ""

    def begin(self, slot: int, request: SlotRequest) -> None:
        assert slot == 0
        self.n_left = request.count

    def advance(self, form: Form, *, one_step: bool = False) -> None:
        self.spend(form)
        self.n_left -= 1
        answer = Answer(0, 7 + self.n_left % 3, -1.5, None if self.n_left else "length")
        self.found.append(self.change(form, answer))

    def answers(self) -> list[Answer]:
        found, self.found = self.found, []
        return found

    def recover(self) -> None:
        self.n_recovered += 1


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", context_length=64)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> FakeDecoder:
    """What the device `cpu` has in this test."""
    fake = FakeDecoder()
    host_step = Engine._decode

    def timed_step(engine: Engine, token_id: int, pos: int) -> Any:
        fake.spend("host")
        return host_step(engine, token_id, pos)

    monkeypatch.setattr(CpuOps, "decoder", lambda *_: fake)
    monkeypatch.setattr(Engine, "_decode", timed_step)
    for module in (engine_module, request_module):
        monkeypatch.setattr(module, "time", fake)
    return fake


def chosen(path: Path, **options: Any) -> str:
    with LLM.load(path, device="cpu", decode="auto", **options) as llm:
        return llm.decode_form


def entries(home: Path) -> list[Path]:
    return sorted(home.joinpath("decode").iterdir())


def test_the_fastest_is_chosen_and_remembered(path: Path, decoder: FakeDecoder, home: Path) -> None:
    told: list[tuple[str, float]] = []
    assert chosen(path, progress=lambda *word: told.append(word)) == "graph"
    fractions = [fraction for stage, fraction in told if stage == "measuring decode"]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    n = 2 * N_CHECKED + N_REPEATS * N_TIMED
    assert decoder.n_tokens == dict.fromkeys(decoder.ms, n)

    [entry] = entries(home)
    assert json.loads(entry.read_text())["ms_per_token"] == pytest.approx(decoder.ms)
    decoder.ms["graph"] = 9.0
    assert chosen(path) == "graph"
    assert decoder.n_tokens["graph"] == n


def test_what_is_another_key(path: Path, decoder: FakeDecoder, tmp_path: Path, home: Path) -> None:
    assert chosen(path) == "graph"
    decoder.ms["persistent"] = 0.5
    assert chosen(path, max_seq_len=48) == "persistent"
    other = write_tiny_gguf(tmp_path / "q.gguf", context_length=64, tensor_type="Q8_0")
    assert chosen(other) == "persistent"
    decoder.device = "Tesla M40, sm_52, code for sm_52, driver 580.65 (CUDA 13.0)"
    assert chosen(path) == "persistent"
    assert len(entries(home)) == 4


def test_a_form_that_answers_otherwise_is_not_chosen(path: Path, decoder: FakeDecoder) -> None:
    def wrong(form: Form, answer: Answer) -> Answer:
        is_wrong = form == "graph"
        return Answer(0, answer.token_id, answer.logprob + 1e-7 * is_wrong, answer.done)

    decoder.change = wrong
    assert chosen(path) == "persistent"
    assert decoder.n_tokens["graph"] == N_CHECKED


def test_a_form_that_fails_is_not_chosen(path: Path, decoder: FakeDecoder, home: Path) -> None:
    """Also where it fails after some tokens; the device recovers before the next form runs."""

    def fail(form: Form, answer: Answer) -> Answer:
        if form in failing and decoder.n_tokens[form] % N_CHECKED == 5:
            raise DeviceError("kernel decode_program: unspecified failure")
        return answer

    failing: set[str] = {"graph"}
    decoder.change = fail
    assert chosen(path) == "persistent"
    assert decoder.n_recovered == 1
    entries(home)[0].unlink()
    failing |= set(FORMS)
    assert chosen(path) == "host"
    assert len(entries(home)) == 1


def test_a_form_that_answers_otherwise_at_times_is_not_chosen(
    path: Path, decoder: FakeDecoder
) -> None:
    def wrong(form: Form, answer: Answer) -> Answer:
        is_wrong = form == "graph" and decoder.n_tokens[form] == 2 * N_CHECKED + N_TIMED + 3
        return Answer(0, answer.token_id ^ is_wrong, answer.logprob, answer.done)

    decoder.change = wrong
    assert chosen(path) == "persistent"
    assert decoder.n_tokens["graph"] == decoder.n_tokens["eager"]


def test_a_form_that_the_card_should_not_use(path: Path, decoder: FakeDecoder) -> None:
    decoder.forms = ("eager", "graph")
    decoder.ms["persistent"] = 0.1
    assert chosen(path) == "graph"
    assert "persistent" not in decoder.n_tokens


def test_a_slow_device_makes_few_tokens(path: Path, decoder: FakeDecoder) -> None:
    decoder.ms = dict.fromkeys(decoder.ms, 500.0)
    chosen(path)
    assert decoder.n_tokens == dict.fromkeys(decoder.ms, RUNS * N_CHECKED)


def test_no_room_for_a_measurement(path: Path, decoder: FakeDecoder, home: Path) -> None:
    assert chosen(path, max_seq_len=N_CHECKED) == "host"
    assert not home.joinpath("decode").exists()


def test_a_card_that_does_not_answer_any_more(path: Path, decoder: FakeDecoder, home: Path) -> None:
    """One of the forms broke it: the next load does not try it again."""

    def die(form: Form, answer: Answer) -> Answer:
        monkeypatch.setattr(Engine, "_forward", die_too)
        raise DeviceError("the card does not answer any more")

    def die_too(*_: Any) -> Any:
        raise DeviceError("the card does not answer any more")

    decoder.change = die
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert chosen(path) == "host"
    [entry] = entries(home)
    assert json.loads(entry.read_text())["ms_per_token"] == {}
    n = dict(decoder.n_tokens)
    assert chosen(path) == "host"
    assert decoder.n_tokens == n


@pytest.mark.parametrize("left", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"key": {}}', None])
def test_a_damaged_file_is_written_again(
    path: Path, decoder: FakeDecoder, home: Path, left: bytes | None
) -> None:
    chosen(path)
    [entry] = entries(home)
    sound = entry.read_bytes()
    entry.write_bytes(
        sound.replace(b'"form": "graph"', b'"form": "warp"') if left is None else left
    )
    assert chosen(path) == "graph"
    assert entries(home) == [entry]
    for name in ("key", "form"):
        assert json.loads(entry.read_text())[name] == json.loads(sound)[name]


def test_a_home_that_cannot_be_written(
    path: Path, decoder: FakeDecoder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text("a file, no folder")
    assert chosen(path) == "graph"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    home.unlink()
    monkeypatch.setattr("os.replace", full)
    assert chosen(path) == "graph"
    assert entries(home) == []  # nothing half-written stays


def test_several_write_at_once(tmp_path: Path) -> None:
    """A reader sees one or the other, whole."""
    at, key = tmp_path / "decode" / "one.json", {"device": "Tesla M40" * 1000}

    def write(form: str) -> None:
        for _ in range(50):
            rooms.remember(at, {"key": key, "form": form})
            assert rooms.remembered(at, key, FORMS) in ("eager", "graph")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, ["eager", "graph"] * 2))
    assert list(at.parent.iterdir()) == [at]


def test_where_there_is_no_decoder(path: Path, home: Path) -> None:
    assert chosen(path) == "host"
    with LLM.load(path, device="cpu") as llm:
        assert llm.decode_form == "host"
    assert not home.exists()


def test_a_decoder_that_finds_no_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DeviceError("allocating 64.0 MB: CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(CpuOps, "decoder", fail)
    assert chosen(path) == "host"


@pytest.mark.parametrize(("device", "form"), [("cuda:0", "graph"), ("emulator", "host")])
def test_the_default_measures_on_a_card_only(
    path: Path, decoder: FakeDecoder, home: Path, monkeypatch: pytest.MonkeyPatch,
    device: str, form: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(CpuOps, "name", device)
    with LLM.load(path, device="cpu") as llm:
        assert llm.decode_form == form
    assert home.exists() == (device == "cuda:0")


@pytest.mark.parametrize("device", ["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_on_a_device(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_compiled: Callable[..., Path]
) -> None:
    """Answers are what they are without a measurement before them, and the cache is empty."""
    monkeypatch.setenv("M40LLM_HOME", str(with_compiled(tmp_path / "compiled")))
    monkeypatch.setattr(rooms, "cache_dir", lambda: tmp_path)
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf", head_dim=64, context_length=32, tensor_type="F16"
    )
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    with LLM.load(path, device=device, decode="auto") as llm:
        [entry] = entries(tmp_path)
        found = json.loads(entry.read_text())
        assert set(found["ms_per_token"]) == {"host", *FORMS}
        assert found["form"] == llm.decode_form
        assert llm.transformer.kv.seq_lens.tolist() == [0]
        answer = llm.generate([0, 1, 2], params)
    with LLM.load(path, device=device, decode=found["form"]) as llm:
        assert llm.generate([0, 1, 2], params).ids == answer.ids


def test_a_model_without_a_program_is_refused_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", arch="mixtral")

    def fails(*_: Any) -> Any:
        raise AssertionError("weights were read")

    monkeypatch.setattr("m40llm.llm.load.load_weights", fails)
    told = r"decode: expected 'host' or 'eager' or 'graph'.*experts"
    with pytest.raises(RequestError, match=told):
        LLM.load(path, device="emulator", decode="persistent")


def test_several_sequences_are_no_host_loops() -> None:
    """It would be timed with one row, where a step of the device makes one of each."""
    ms: dict[DecodeForm, float] = {"host": 1.0, "eager": 3.0, "graph": 2.0}
    assert fastest(ms, 1) == "host"
    assert fastest(ms, 4) == "graph"
    assert fastest({"host": 1.0}, 4) == "host"
