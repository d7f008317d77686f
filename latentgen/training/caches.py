"""What a frozen VAE and a frozen text encoder say about a data set, computed once.

Each file is named after all that it was made from (pictures and their shapes, token ids, weights, precision), so a
stale one is never met: what changed has another name.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentgen.checkpoints.io import is_finite, raw_bytes
from latentgen.data.array_file import open_array, write_array
from latentgen.data.pixels import Pictures, rows_by_shape, to_float
from latentgen.data.record import Record
from latentgen.errors import RuntimeFailure
from latentgen.kernels.vae import is_fast, speed_up_vae, why_not_fast_vae
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.models.vae import AutoencoderKL

PICTURES_AT_A_TIME = 4
"""With channels_last and bf16 on a CPU 1.6 times as fast as 16 in the default layout (measured)."""
CAPTIONS_AT_A_TIME = 64
AUTOCAST: Mapping[str, torch.dtype | None] = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What --mixed-precision computes in."""


def weights_fingerprint(*modules: nn.Module | None) -> str:
    """A short SHA-256 over the tensors of one module or more, names included."""
    digest = hashlib.sha256()
    states = [module.state_dict() for module in modules if module is not None]
    for name, value in (each for state in states for each in sorted(state.items())):
        digest.update(name.encode())
        digest.update(raw_bytes(value.detach().cpu().contiguous()))
    return digest.hexdigest()[:16]


class LatentCache:
    """Posterior mean and log-variance of every picture, (C, h, w) each; raw z, kept as (n, 2, C, h, w) float16.

    One file for each shape of the pictures. Computed where the VAE is; that turns it to the channels_last layout.
    Raises RuntimeFailure if the VAE's answer does not fit into float16, or the disk refuses a file.
    """

    def __init__(
        self,
        records: list[Record],
        pixels: Pictures,
        vae: AutoencoderKL,
        folder: Path,
        report: Callable[[str], None],
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        assert len(records) == len(pixels), "these are the pictures of these records"
        rows, downscale = rows_by_shape(pixels.shapes), vae.config.downscale
        # In bfloat16 on a CPU, where there is a fast form, with that: 1.5 times as fast and as exact (measured).
        fast = autocast == torch.bfloat16 and why_not_fast_vae(vae, torch.bfloat16) is None
        precision = f"{_precision(autocast)}{'-fast' if fast else ''}"
        weights = weights_fingerprint(vae.encoder, vae.quant_conv)  # whatever the decoder has learnt since
        self.identity = f"latents-{pixels.identity}-{weights}-{precision}"
        """Of what pictures, by which encoder, how exactly: other latents have another."""
        paths = [folder / f"{self.identity}-{height}x{width}.npy" for height, width in rows]
        encoder = vae
        if not all(path.exists() for path in paths):
            report(f"encoding {len(pixels)} pictures with the VAE")
            encoder = _fast_copy(vae) if fast else vae
        self._shapes = [(height // downscale, width // downscale) for height, width in pixels.shapes]
        self._arrays: list[NDArray[np.float16]] = []
        self._place: list[tuple[int, int]] = [(0, 0)] * len(pixels)
        """Of every picture: which array, and which row of it."""
        for path, ((height, width), items) in zip(paths, rows.items(), strict=True):
            shape = (len(items), 2, vae.config.latent_channels, height // downscale, width // downscale)
            if not path.exists():
                write_array(path, shape, np.float16, _encode_pictures(encoder, pixels, items, autocast))
            for row, item in enumerate(items):
                self._place[item] = (len(self._arrays), row)
            self._arrays.append(open_array(path, shape, np.float16))

    def __len__(self) -> int:
        return len(self._place)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Height and width of every picture's latents."""
        return self._shapes

    def mean(self, item: int) -> Tensor:
        """Posterior mean of one picture, (C, h, w) float32: what the U-Net learns from.

        Not a sample of the posterior: its spread is some thousandths of the latents', except at rare places (one
        picture in a hundred, measured) where an unregularised log-variance runs off, and one such place outweighs its
        whole batch.
        """
        array, row = self._place[item]
        return torch.from_numpy(self._arrays[array][row, 0].astype(np.float32))

    def moments(self, item: int) -> Tensor:
        """Posterior mean and log-variance of one picture, one above the other: (2C, h, w) float32."""
        array, row = self._place[item]
        return torch.from_numpy(self._arrays[array][row].astype(np.float32)).flatten(0, 1)


class Contexts(Protocol):
    """What the network is told of a caption: its context (77, D), or what it makes that of itself."""

    def context(self, caption: str) -> Tensor: ...


class ContextCache:
    """Text-encoder states of every distinct caption, and of the empty prompt: (77, D) float16 each.

    Computed where the text encoder is. Raises RuntimeFailure as `LatentCache` does.
    """

    def __init__(
        self,
        records: list[Record],
        tokenizer: Tokenizer,
        encoder: CLIPTextModel,
        folder: Path,
        report: Callable[[str], None],
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        captions = sorted({caption for record in records for caption in record.captions} | {""})
        ids = _token_ids_fingerprint(tokenizer, captions)
        self.path = folder / f"contexts-{ids}-{weights_fingerprint(encoder)}-{_precision(autocast)}.npy"
        self._row = {caption: row for row, caption in enumerate(captions)}
        shape = (len(captions), encoder.config.max_position_embeddings, encoder.config.hidden_size)
        if not self.path.exists():
            report(f"encoding {len(captions)} distinct captions")
            write_array(self.path, shape, np.float16, _encode_captions(encoder, tokenizer, captions, autocast))
        self._contexts: NDArray[np.float16] = open_array(self.path, shape, np.float16)

    def __len__(self) -> int:
        return len(self._contexts)

    def context(self, caption: str) -> Tensor:
        """(77, D) float32; the empty string is the unconditional context."""
        return torch.from_numpy(self._contexts[self._row[caption]].astype(np.float32))


def _fast_copy(vae: AutoencoderKL) -> AutoencoderKL:
    fast = copy.deepcopy(vae).to(torch.bfloat16)
    speed_up_vae(fast)
    return fast


def _encode_pictures(
    vae: AutoencoderKL, pixels: Pictures, items: list[int], autocast: torch.dtype | None
) -> Iterator[NDArray[np.float16]]:
    device = next(vae.parameters()).device
    vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  missing in torch's overloads
    dtype, autocast = (torch.bfloat16, None) if is_fast(vae) else (torch.float32, autocast)
    groups = [items[start : start + PICTURES_AT_A_TIME] for start in range(0, len(items), PICTURES_AT_A_TIME)]
    for group, pictures in zip(groups, pixels.batches(groups), strict=True):
        batch = to_float(pictures).to(device, dtype, memory_format=torch.channels_last)
        with torch.inference_mode(), _autocast(device, autocast):
            mean, logvar = vae.encode(batch)
        yield as_float16(torch.stack([mean, logvar], dim=1), f"the VAE's latents of pictures {group}")


def _encode_captions(
    encoder: CLIPTextModel, tokenizer: Tokenizer, captions: list[str], autocast: torch.dtype | None
) -> Iterator[NDArray[np.float16]]:
    device = next(encoder.parameters()).device
    for start in range(0, len(captions), CAPTIONS_AT_A_TIME):
        ids = tokenizer.encode(captions[start : start + CAPTIONS_AT_A_TIME]).to(device)
        with torch.inference_mode(), _autocast(device, autocast):
            contexts = encoder(ids)
        yield as_float16(contexts, f"the text encoder's states of captions {start}..{start + len(ids) - 1}")


def _token_ids_fingerprint(tokenizer: Tokenizer, captions: list[str]) -> str:
    """A short SHA-256 over what the encoder sees of the captions: it covers their text and the tokenizer's content."""
    digest = hashlib.sha256()
    for start in range(0, len(captions), CAPTIONS_AT_A_TIME):
        digest.update(tokenizer.encode(captions[start : start + CAPTIONS_AT_A_TIME]).numpy().tobytes())
    return digest.hexdigest()[:16]


def _precision(autocast: torch.dtype | None) -> str:
    return str(torch.float32 if autocast is None else autocast).removeprefix("torch.")


def as_float16(values: Tensor, what: str) -> NDArray[np.float16]:
    """For a file. Raises RuntimeFailure where one is not finite in float16; what: names the values there."""
    halves = values.half().cpu()
    if not is_finite(halves):
        raise RuntimeFailure(f"{what} are not finite in float16", hint="are these the weights of a trained model?")
    return halves.numpy()


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
