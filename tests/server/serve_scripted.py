"""Not a test: a process that serves a scripted service, for tests of signals.

python serve_scripted.py MODEL GRACE_S TOKEN_S: prints the URL once it is ready. SIGUSR1 is a device
that is lost for good.
"""

import signal
import sys
from pathlib import Path

from m40llm.server.run import bound, run, url_of
from m40llm.server.settings import Settings
from m40llm.testing.scripted import ScriptedService


def main(model: str, grace_s: str, token_s: str) -> None:
    service = ScriptedService(Path(model))
    service.script.token_s = float(token_s)
    signal.signal(signal.SIGUSR1, lambda *_: setattr(service.script, "failure", "the card is lost"))
    at = bound("127.0.0.1", 0)
    settings = Settings(names=("tiny",), grace_s=float(grace_s), keys=())
    run(service, settings, at, lambda: print(url_of(at), flush=True))  # type: ignore[arg-type]
    print("ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
