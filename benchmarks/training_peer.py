"""Run another project's training script in this process and note when each of its steps ended.

    python benchmarks/training_peer.py SCRIPT TIMES.json [--site FOLDER] -- [the script's own arguments]

The script runs unchanged, as `__main__`. Two things around it are replaced: diffusers' check of its own version does
nothing, because the script may ask for another release than the installed one, and tqdm's progress bar, which it moves
once an optimizer step, also writes down the clock. `--site` is a folder with packages that the script needs beyond ours
(`datasets`); it comes last on the search path, so the packages that both use are the same.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import time
from typing import Any


def main() -> None:
    ours, theirs = sys.argv[1:], []
    if "--" in ours:
        cut = ours.index("--")
        ours, theirs = ours[:cut], ours[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script")
    parser.add_argument("times")
    parser.add_argument("--site")
    arguments = parser.parse_args(ours)
    if arguments.site is not None:
        sys.path.append(arguments.site)

    import diffusers.utils
    import tqdm.auto

    def any_version(minimum: str) -> None:
        """In place of diffusers' check, which ends the process."""

    diffusers.utils.check_min_version = any_version
    ended: list[float] = []

    class NotedBar(tqdm.auto.tqdm):
        """The training bar, told apart from those of loading and saving by its title."""

        def update(self, n: float | None = 1) -> Any:
            if str(getattr(self, "desc", "")).startswith("Steps"):  # a disabled bar has no title
                ended.append(time.monotonic())
            return super().update(n)

    tqdm.auto.tqdm = NotedBar
    sys.argv = [arguments.script, *theirs]
    runpy.run_path(arguments.script, run_name="__main__")
    with open(arguments.times, "w", encoding="utf-8") as file:
        json.dump(ended, file)


if __name__ == "__main__":
    main()
