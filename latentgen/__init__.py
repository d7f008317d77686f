"""Latent text-to-image: generate, reproduce, train.

    from latentgen import TextToImage

    model = TextToImage.load()
    for result in model.draw("a lighthouse at sunset", seed=42):
        result.save("lighthouse.png")  # with the request that made it

Names below are imported when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from latentgen.pipeline import GenerationResult, TextToImage
    from latentgen.request import GenerationRequest

__version__ = "0.2.0"
__all__ = ["GenerationRequest", "GenerationResult", "TextToImage", "__version__", "embedded_model_path"]

_LAZY = {
    "GenerationRequest": "latentgen.request",
    "GenerationResult": "latentgen.pipeline",
    "TextToImage": "latentgen.pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def embedded_model_path() -> Path:
    """The folder of the model that comes with latentgen: `weights/embedded` of a checkout, else inside the package.

    It need not exist: a checkout without weights has none, and then the loader says so.
    """
    from pathlib import Path

    package = Path(__file__).resolve().parent
    checkout = package.parent / "weights" / "embedded"
    return checkout if checkout.is_dir() else package / "_weights" / "embedded"
