"""The command line: one file a verb. Importing this loads typer alone; verbs import the rest."""

import io
import sys


def main() -> None:
    """Run the command line (the console script `m40llm`, and `python -m m40llm`)."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows a mark for what it cannot show, and we go on.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    from m40llm.cli.app import app

    app(prog_name="m40llm")
