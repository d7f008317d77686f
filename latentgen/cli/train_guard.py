"""What holds around every training command: one run at a time in a folder, one voice when one process of many fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from latentgen.training.run_lock import check_free
from latentgen.training.signals import LOADING_S, ended_if_stuck


def guarded(out: Path | None, command: Callable[[], None]) -> None:
    """Run a training command that is to write into `out`, or nowhere.

    Raises InputError before anything is loaded if another process trains there, and as `processes.told` says if another
    process of this run has failed.
    """
    # torch's own warnings about a connection that broke are pages of C++ frames; what matters in them we say ourselves.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if out is not None and os.environ.get("RANK", "0") == "0":  # the others wait for the first, which takes the folder
        check_free(out)
    try:
        with ended_if_stuck(signals_before=0, stuck_s=LOADING_S):
            command()
    except Exception as error:  # noqa: BLE001  all are raised again
        processes = sys.modules.get("latentgen.training.processes")
        raise (error if processes is None else processes.told(error)) from error.__cause__
