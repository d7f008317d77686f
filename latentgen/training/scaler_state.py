"""The loss scale of fp16 training as tensors, saved beside the optimizer's: without it a resume is not exact."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "grad_scaler:"


def scaler_tensors(scaler: torch.amp.GradScaler | None) -> dict[str, Tensor]:
    """The state of a scaler, a float64 scalar each; nothing where there is no scaler."""
    if scaler is None:
        return {}
    return {PREFIX + key: torch.tensor(value, dtype=torch.float64) for key, value in scaler.state_dict().items()}


def load_scaler(scaler: torch.amp.GradScaler | None, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the scaler its state back, if there is one of it; the rest of the tensors is returned."""
    if scaler is not None and any(name.startswith(PREFIX) for name in tensors):
        kinds = {key: type(value) for key, value in scaler.state_dict().items()}
        scaler.load_state_dict({key: kind(tensors[PREFIX + key].item()) for key, kind in kinds.items()})
    return {name: value for name, value in tensors.items() if not name.startswith(PREFIX)}
