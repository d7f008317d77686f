"""From requests to pictures. `TextToImage` is the way in."""

from latentgen.pipeline.devices import DTYPES, choose_device, choose_dtype, dtype_name, present_devices
from latentgen.pipeline.result import GenerationResult, Timings, picture_text
from latentgen.pipeline.text_to_image import OnFailure, TextToImage

__all__ = [
    "DTYPES",
    "GenerationResult",
    "OnFailure",
    "TextToImage",
    "Timings",
    "choose_device",
    "choose_dtype",
    "dtype_name",
    "picture_text",
    "present_devices",
]
