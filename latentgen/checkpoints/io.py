"""Tensors in and out of safetensors files, and into modules: strict, atomic, and nothing but data.

Files are read into memory rather than mapped: a mapped file that another process cuts short ends ours with SIGBUS.
They are written aside and renamed, so a crash leaves the old file, with the mode that the umask asks for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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


def read_tensors(
    path: Path, names: Collection[str] | None = None, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the CPU: all of them, or those of `names` that are there.

    Fractions become `dtype` one by one as they are read (None: they stay as in the file), so that the file's numbers
    and the converted ones are never in memory together.
    Raises ModelNotFoundError if there is no such file and ModelLoadError if it is not a sound safetensors file, or if
    numbers of it do not fit into `dtype`.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file, os.fstat(file.fileno()).st_size, path)
            tensors: dict[str, Tensor] = {}
            for entry in header.entries:
                if names is not None and entry.name not in names:
                    continue
                tensor = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype], device="cpu")
                file.seek(entry.begin)
                if file.readinto(raw_bytes(tensor)) != entry.end - entry.begin:
                    raise ModelLoadError(f"{path} became shorter while it was read")
                tensors[entry.name] = as_dtype(tensor, dtype, f"{path}: tensor {entry.name}")
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such file: {path}") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    return tensors


def as_dtype(tensor: Tensor, dtype: torch.dtype | None, what: str) -> Tensor:
    """Fractions in `dtype`; anything else unchanged. Raises ModelLoadError where float16 turns a number infinite."""
    if dtype is None or not tensor.is_floating_point():
        return tensor
    converted = tensor.to(dtype)
    if dtype == torch.float16 and not is_finite(converted) and is_finite(tensor):
        raise ModelLoadError(f"{what} holds numbers that do not fit into float16", hint="use another dtype")
    return converted


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
    what = type(module).__name__
    check_fit(wanted, tensors, source, what)
    converted = {
        name: tensor.to(device=device, dtype=dtype or wanted[name].dtype)
        if wanted[name].is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }
    if broken := list_names("with infinite or NaN values", [n for n, t in converted.items() if not is_finite(t)]):
        sound = all(is_finite(tensor) for tensor in tensors.values())
        raise ModelLoadError(
            f"{source}: {what} tensors {broken}",
            hint=f"its numbers do not fit into {dtype}; use another dtype" if sound else "the file is damaged",
        )
    module.load_state_dict(converted, strict=True, assign=True)


@contextmanager
def without_numbers() -> Generator[None]:
    """Networks built inside have names and shapes only: they lie on the meta device, and nothing is initialised.

    Initialising would be free of work there but not of cost: torch's `normal_` on the meta device imports its compiler,
    1.5 s of a first load.
    """
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    _SKIPPED: Final = frozenset({nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.constant_})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in self._SKIPPED:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def check_fit(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str | Path, what: str) -> None:
    """Raise ModelLoadError unless there are tensors of these names and shapes and no others; `what` they are to be.

    The error names every kind of mismatch at once. `wanted` may lie on the meta device.
    """
    problems = [
        list_names("missing", [name for name in wanted if name not in tensors]),
        list_names("unknown", [name for name in tensors if name not in wanted]),
        list_names(
            "of another shape",
            [
                f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
                for name in wanted
                if name in tensors and tensors[name].shape != wanted[name].shape
            ],
        ),
        list_names(
            "of whole numbers instead of fractions",
            [
                name
                for name in wanted
                if name in tensors and wanted[name].is_floating_point() and not tensors[name].is_floating_point()
            ],
        ),
    ]
    if any(problems):
        raise ModelLoadError(
            f"{source} does not fit this {what}: {'; '.join(filter(None, problems))}",
            hint="the weights and the config beside them belong to different models",
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number: NaN and infinity both reach the extremes, in one pass and no extra memory."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, in place."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def list_names(problem: str, names: Iterable[str]) -> str:
    """'3 missing (a, b, c)', with at most three names; empty for no names."""
    listed = list(names)
    if not listed:
        return ""
    shown = ", ".join(listed[:3]) + (" ..." if len(listed) > 3 else "")
    return f"{len(listed)} {problem} ({shown})"
