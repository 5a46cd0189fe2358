"""A server whose device is lost to this process goes on in another one.

A kernel that reads where it must not leaves a process without its card: the driver says no to
whatever follows. So the server replaces itself by the same command. The process keeps its number,
for systemd and containers, and its listening socket: who connects meanwhile waits for the model.
"""

import os
import socket
import sys
import time
from typing import Final, NoReturn

from m40llm.errors import DeviceError
from m40llm.server.log import log

_SOCKET: Final = "M40LLM_SOCKET"  # its file descriptor
_SINCE: Final = "M40LLM_RESTARTED"  # seconds since 1970
TOO_SOON_S: Final = 60.0  # after the last time: another process does not help


def inherited() -> socket.socket | None:
    """The socket that the process before listened to, if there was one; taken once."""
    left = os.environ.pop(_SOCKET, None)
    return socket.socket(fileno=int(left)) if left else None


def restart(at: socket.socket, why: str) -> NoReturn:
    """Does not return. DeviceError where that was tried a minute ago, or this is no POSIX."""
    now, last = time.time(), float(os.environ.get(_SINCE, "-inf"))
    if now - last < TOO_SOON_S:
        raise DeviceError(f"{why}; a new process, {now - last:.0f} s ago, has not helped")
    if os.name != "posix":
        raise DeviceError(f"{why}; start again")
    log("restarting", reason=why)
    at.set_inheritable(True)
    os.environ |= {_SOCKET: str(at.fileno()), _SINCE: str(now)}
    sys.stdout.flush()
    sys.stderr.flush()
    _close_all_but(at.fileno())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _close_all_but(kept: int) -> None:
    """Of the files beyond stderr: what holds the card's memory is let go, whoever opened it."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
