"""Tensors in and out of safetensors files, and into modules: strict, atomic, and nothing but data.

Files are read into memory rather than mapped: a mapped file that another process cuts short ends ours with SIGBUS.
They are written aside and renamed, so a crash leaves the old file, with the mode that the umask asks for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from latentgen.checkpoints.header import read_header
from latentgen.errors import ModelLoadError, ModelNotFoundError, RuntimeFailure

TORCH_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU in the file's dtypes.

    Raises ModelNotFoundError if there is no such file and ModelLoadError if it is not a sound safetensors file.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file, os.fstat(file.fileno()).st_size, path)
            tensors: dict[str, Tensor] = {}
            for entry in header.entries:
                tensor = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype], device="cpu")
                file.seek(entry.begin)
                if file.readinto(raw_bytes(tensor)) != entry.end - entry.begin:
                    raise ModelLoadError(f"{path} became shorter while it was read")
                tensors[entry.name] = tensor
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such file: {path}") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; the same tensors always give the same bytes.

    The file is complete on the disk before it takes the place of an older one, and its mode follows the umask.
    Raises RuntimeFailure if the disk refuses (full, read-only), leaving no partial file.
    """
    # As in the reference writer: wide elements first, so that every tensor begins at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                file.write(raw_bytes(tensors[name].detach().cpu().contiguous()))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise RuntimeFailure(f"cannot write {path}: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: without this a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Put tensors into a module, all of them or none; `source` is for messages.

    The module may have been built on the meta device. Its parameters become the given tensors, converted to `dtype`
    (None: the module's own) and moved to `device`.
    Raises ModelLoadError naming every kind of mismatch at once: missing, unknown, of another shape, not finite.
    """
    wanted = module.state_dict()
    problems = [
        _list_names("missing", [name for name in wanted if name not in tensors]),
        _list_names("unknown", [name for name in tensors if name not in wanted]),
        _list_names(
            "of another shape",
            [
                f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
                for name in wanted
                if name in tensors and tensors[name].shape != wanted[name].shape
            ],
        ),
        _list_names(
            "of whole numbers instead of fractions",
            [
                name
                for name in wanted
                if name in tensors and wanted[name].is_floating_point() and not tensors[name].is_floating_point()
            ],
        ),
    ]
    what = type(module).__name__
    if any(problems):
        raise ModelLoadError(
            f"{source} does not fit this {what}: {'; '.join(filter(None, problems))}",
            hint="the weights and the config beside them belong to different models",
        )
    converted = {
        name: tensor.to(device=device, dtype=dtype or wanted[name].dtype)
        if wanted[name].is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }
    if broken := _list_names("with infinite or NaN values", [n for n, t in converted.items() if not is_finite(t)]):
        sound = all(is_finite(tensor) for tensor in tensors.values())
        raise ModelLoadError(
            f"{source}: {what} tensors {broken}",
            hint=f"its numbers do not fit into {dtype}; use another dtype" if sound else "the file is damaged",
        )
    module.load_state_dict(converted, strict=True, assign=True)


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number: NaN and infinity both reach the extremes, in one pass and no extra memory."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, in place."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def sha256(*paths: Path) -> str:
    """SHA-256 over the contents of files, in hexadecimal; over several, of their digests in the order given."""
    digests: list[bytes] = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


def _list_names(problem: str, names: Iterable[str]) -> str:
    """'3 missing (a, b, c)', with at most three names; empty for no names."""
    listed = list(names)
    if not listed:
        return ""
    shown = ", ".join(listed[:3]) + (" ..." if len(listed) > 3 else "")
    return f"{len(listed)} {problem} ({shown})"
