"""How every verb ends: exit code 0, 1 (failure), 2 (usage), 130 (Ctrl-C) or 141 (broken pipe).

A failure is one line on stderr, the traceback only with --debug. With --json the failure is the
one JSON document on stdout: {"error": {"type": ..., "message": ...}}.
"""

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, ParamSpec

import typer

from m40llm.cli.flags import with_flag
from m40llm.cli.output import print_json, status
from m40llm.errors import KernelContractError, M40LLMError, RequestError

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

P = ParamSpec("P")


def guarded(verb: Callable[P, None]) -> Callable[P, None]:
    """Wrap a verb so that whatever it raises ends in one clear line and the right exit code."""

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()  # a reader that has gone away shows here, not at exit
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            status("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            _forget_stdout()
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except Exception as error:
            _fail(error, as_json=bool(kwargs.get("as_json")), debug=bool(kwargs.get("debug")))

    return run


def _fail(error: Exception, *, as_json: bool, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    known = isinstance(error, M40LLMError) and not isinstance(error, KernelContractError)
    message = str(error) or type(error).__name__
    if isinstance(error, RequestError):
        message = with_flag(message)
    if isinstance(error, OSError):  # the machine's fault: a full disk, a file that vanished
        known, message = True, f"{error.filename or 'output'}: {error.strerror or error}"
        if error.errno == errno.ENOSPC:
            _forget_stdout()
    if known:
        status(f"error: {message}")
    else:
        hint = "" if debug else " (run again with --debug for the traceback)"
        status(f"internal error: {type(error).__name__}: {message}{hint}")
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message}})
    raise typer.Exit(EXIT_FAILURE) from None


def _forget_stdout() -> None:
    """Let Python's flush at exit go nowhere: the reader of our pipe has gone."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
