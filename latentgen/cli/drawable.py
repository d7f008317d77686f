"""What a model that is to be drawn with is made of, and of a file that is none what it is instead."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Final

from latentgen.errors import ModelLoadError

if TYPE_CHECKING:
    from latentgen.checkpoints.identify import Kind
    from latentgen.config import ModelConfig

_FLAGS: Final[dict[Kind, str]] = {"lora": "--lora", "vae": "--vae", "textual_inversion": "--embedding"}
"""Where a file belongs that is no model of its own."""


def read_drawable(path: Path) -> ModelConfig:
    """A model folder or single file in numbers, before torch is imported.

    Raises as `read_config`; of a weights file that is whole but no model, the error says what it is.
    """
    from latentgen.checkpoints.identify import identify
    from latentgen.checkpoints.layout import read_config

    try:
        return read_config(path)
    except ModelLoadError:
        if not path.is_file():
            raise
        found = identify(path)
        if found.kind == "unknown" or (found.kind == "model" and found.is_supported):
            raise
        flag = _FLAGS.get(found.kind)
        hint = (
            f"a model and {flag} {quote(str(path))}"
            if flag
            else "models of Stable Diffusion 1.x and 2.x can be drawn with"
        )
        raise ModelLoadError(f"{path} is {found.title}, not a model to draw with", hint=hint) from None
