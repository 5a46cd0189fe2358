"""A card that a kernel has broken: who asks is told, and the server goes on in a new process."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from m40llm.testing import write_tiny_gguf

# The command itself, in which SIGUSR1 launches a kernel that writes where there is nothing.
SERVE = """
import signal, sys
import numpy as np
from m40llm.cli import main
from m40llm.device.cuda.array import DeviceArray
from m40llm.kernels.scale import scale
from m40llm.llm.service import Service

load = Service.load.__func__
nowhere = DeviceArray.at(1 << 20, (1, 1024), np.float32, None)

def loaded(cls, *args, **how):
    service = load(cls, *args, **how)
    card = service._runner._lent.engine.model.ops.card
    scale(card.alloc((1, 1024), np.float32), 2.0, stream=card)  # compiled before it is needed
    signal.signal(signal.SIGUSR1, lambda *_: scale(nowhere, 2.0, stream=card))
    return service

Service.load = classmethod(loaded)
sys.argv = ["m40llm", "serve", sys.argv[1], "--device", "cuda", "--port", "0", "--json"]
main()
"""


def ask(url: str, n_tokens: int, timeout: float = 120) -> httpx.Response:
    body = {"model": "tiny", "prompt": "ab", "max_tokens": n_tokens, "temperature": 0}
    return httpx.post(f"{url}/v1/completions", json=body | {"ignore_eos": True}, timeout=timeout)


@pytest.mark.gpu
def test_a_card_that_a_kernel_has_broken(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=64, context_length=4096)
    command = [sys.executable, "-c", SERVE, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            first = json.loads(server.stdout.readline())
            before = ask(first["url"], 8).json()["choices"][0]["text"]
            server.send_signal(signal.SIGUSR1)
            time.sleep(0.05)
            assert ask(first["url"], 64).json()["error"]["code"] == "device_error"
            again = json.loads(server.stdout.readline())
            assert again["url"] == first["url"]
            assert ask(again["url"], 8).json()["choices"][0]["text"] == before
        finally:
            server.terminate()
        assert server.wait(60) == 0
