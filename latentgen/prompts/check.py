"""What is wrong with a request's prompts, before anything is loaded. Torch-free."""

from __future__ import annotations

from latentgen.config import ModelConfig
from latentgen.prompts.syntax import parse_prompt
from latentgen.request import GenerationRequest, RequestError


def check_prompts(request: GenerationRequest, config: ModelConfig) -> None:
    """Raise InputError for prompts that cannot be parsed, RequestError for a clip skip beyond the text encoder."""
    parse_prompt(request.prompt)
    parse_prompt(request.negative_prompt)
    layers = config.text_encoder.num_hidden_layers
    if request.clip_skip is not None and request.clip_skip > layers:
        raise RequestError(
            "clip-skip", f"{request.clip_skip} is more than this text encoder's layers", hint=f"1 to {layers}"
        )


def skipped_layers(clip_skip: int | None) -> int:
    """How many of the text encoder's last layers are left out.

    Clip skip counts from the layer that the model itself reads, as diffusers does: for SD 2.x that is the one before
    the last of OpenCLIP's, which its folders and our reading of its files do not have.
    """
    return 0 if clip_skip is None else clip_skip - 1
