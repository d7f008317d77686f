"""Whether pictures can fit into this machine's memory, asked before torch is imported and any weight is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from latentgen.config import ModelConfig
from latentgen.errors import OutOfMemoryError
from latentgen.request import GenerationRequest

GPUS: Final = ("/dev/nvidiactl", "/dev/kfd")
"""Where a driver shows that there is a GPU with memory of its own, which is asked when it is used."""
LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says what a container may use."""


def check_memory(requests: Sequence[GenerationRequest], config: ModelConfig, device: str, dtype: str) -> None:
    """Raise OutOfMemoryError, with both figures, for a picture that this machine cannot hold whatever is freed.

    device and dtype: as on the command line. What is computed on a GPU is not looked at.
    """
    has_gpu = any(Path(each).exists() for each in GPUS)
    if not requests or device.startswith("cuda") or (device == "auto" and has_gpu):
        return
    present = machine_bytes()
    entry_bytes = 4 if dtype == "float32" else 2
    largest = max(requests, key=lambda request: minimum_bytes(request, config, entry_bytes))
    needed = minimum_bytes(largest, config, entry_bytes)
    if present is not None and needed > present:
        width, height = _final_size(largest)
        raise OutOfMemoryError(
            f"{width}x{height} needs at least {_gb(needed)} of memory with this model, this machine has {_gb(present)}",
            hint="a smaller --size",
        )


def minimum_bytes(request: GenerationRequest, config: ModelConfig, entry_bytes: int) -> int:
    """A lower bound of what drawing takes: the larger of two moments in the U-Net, at the picture's final size.

    At the bottom all skip connections are held. In the first feed-forward its input, the first skip connection and both
    halves of the gate's projection (8 widths) are held at once. Guidance doubles both.
    The autoencoder is left out: it computes large pictures in tiles.
    """
    unet = config.unet
    width, height = _final_size(request)
    positions = (width // config.vae.downscale) * (height // config.vae.downscale)
    channels = unet.block_out_channels
    skips = channels[0] * positions
    for level, own in enumerate(channels):
        here = positions >> (2 * level)
        skips += unet.layers_per_block * own * here
        if level + 1 < len(channels):
            skips += own * (here >> 2)
    widest = 10 * channels[0] * positions if unet.attention_levels[0] else 0
    return max(skips, widest) * entry_bytes * (1 if request.guidance == 1 else 2)


def machine_bytes() -> int | None:
    """Memory of this machine or container; None where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    for limit in LIMITS:
        try:
            text = Path(limit).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            total = min(total, int(text))
    return total


def _final_size(request: GenerationRequest) -> tuple[int, int]:
    scale = 1.0 if request.hires is None else request.hires.scale
    return round(request.width_px * scale), round(request.height_px * scale)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
