"""What `--model` may be: a folder, or the name of a model that is installed here."""

from __future__ import annotations

from pathlib import Path

from latentgen import embedded_model_path
from latentgen.errors import ModelLoadError, ModelNotFoundError

EMBEDDED = "embedded"


def installed_models() -> dict[str, Path]:
    """Folders by name, the default first; only those that are there."""
    return {EMBEDDED: embedded_model_path()} if embedded_model_path().is_dir() else {}


def resolve_model(text: str | None) -> Path:
    """The folder of a model, the embedded one if None. Nothing is ever downloaded for a name that is not known.

    Raises ModelNotFoundError if it is not there, ModelLoadError if it is a file.
    """
    name = EMBEDDED if text is None else text
    folder = installed_models().get(name)
    if folder is not None:
        return folder
    if name == EMBEDDED:
        raise ModelNotFoundError(
            f"the embedded model is not installed: there is no folder {embedded_model_path()}",
            hint="give a model folder with --model, or install latentgen's wheel",
        )
    path = Path(name)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"--model {name}: {error}") from None
    if exists and not is_folder:
        raise ModelLoadError(
            f"--model {name} is a file; a model is a folder with unet, vae, text_encoder and tokenizer in it",
            hint=f"see what it holds: latentgen info {name}",
        )
    if not exists:
        raise ModelNotFoundError(f"there is no model folder {name}", hint="see: latentgen models list")
    return path
