"""The load of the server, shortened: clients of all kinds, every answer compared, nothing left."""

from pathlib import Path

import serve_load

from m40llm.testing import write_tiny_gguf


def test_clients_of_all_kinds(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=256)
    args = ("--slots", "3", "--chunk", "16", "--max-waiting", "4")
    row = serve_load.measure(str(path), n_clients=12, seconds=8.0, n_cases=12, seed=0, args=args)
    assert row["wrong"] == []
    assert row["exit_code"] == 0
    kinds = {"ask", "stream", "go_away", "be_slow", "malformed", "oversized", "too_long"}
    assert kinds <= set(row["requests"])
    assert row["overhead_ms"]["p99"] > 0
