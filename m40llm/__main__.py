"""`python -m m40llm`: the command line, where the console script is not on the PATH."""

from m40llm.cli import main

if __name__ == "__main__":
    main()
