"""Hatch's hook: an installation from source compiles the kernels, where it can. Without them all works, only slower."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))
import build as kernels


class KernelsHook(BuildHookInterface[Any]):
    """A wheel with compiled kernels is for this platform; one without is for all."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if (failure := kernels.build()) is not None:
            kernels.LIBRARY.unlink(missing_ok=True)
            self.app.display_warning(f"no compiled kernels: {failure}")
            return
        build_data["artifacts"].append("latentgen/kernels/_kernels.so")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{kernels.wheel_platform()}"
