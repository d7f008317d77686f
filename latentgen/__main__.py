"""`python -m latentgen`: the command line without the installed script."""

from __future__ import annotations

from latentgen.cli.app import run

if __name__ == "__main__":
    run()
