"""A LoRA merged into a model's weights for good, to hold others' results against."""

from __future__ import annotations

import torch

from latentgen.checkpoints.folder import ModelBundle
from latentgen.checkpoints.lora import LoadReport, LoRAWeights, match_lora, merged_weight
from latentgen.models.lora import layers_of


def apply_lora(bundle: ModelBundle, lora: LoRAWeights, scale: float = 1.0) -> LoadReport:
    """Merge a LoRA into a model's weights, in place: W + scale * alpha / rank * up @ down. Several add up.

    Modules for which the model has no layer are left out and listed in the report. Raises as `match_lora`; then nothing
    is merged.
    """
    report = match_lora(bundle, lora)
    layers = layers_of(bundle.unet, bundle.text_encoder)
    with torch.no_grad():
        for name in lora.modules.keys() & layers.keys():
            weight = layers[name].weight
            weight.copy_(merged_weight(weight, [(lora.modules[name], scale)]))
    return report
