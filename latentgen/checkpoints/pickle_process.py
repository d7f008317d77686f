"""The process that reads a pickle for `pickles.py`: `python -m latentgen.checkpoints.pickle_process PICKLE INTO`.

Exit code 0 and a safetensors file, or 3 and one line of JSON with the problem on stdout.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor

from latentgen.checkpoints.io import TORCH_DTYPES, write_tensors
from latentgen.errors import LatentgenError

ROOM_BYTES = 2**30
"""Address space beyond three times the file: mapped once, copied once, and the objects around it."""
MAX_CPU_S = 600


class _StandIn:
    """In place of a class that a pickle only names: nothing is made of it and nothing called."""


_ONLY_NAMED: list[Any] = [
    (_StandIn, name)
    for name in (
        # Keys of the settings that PyTorch Lightning saved beside the weights of SD 1.x.
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    )
]


def main(pickle: Path, into: Path) -> int:
    """Copy the tensors; the exit code."""
    _limit_resources(pickle.stat().st_size)
    try:
        write_tensors(into, _state_dict(_load(pickle)))
    except MemoryError:
        return _fail("it needs more memory than its size explains")
    except LatentgenError as error:
        return _fail(str(error))
    except (UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        return _fail(_in_our_words(str(error)))
    return 0


def _limit_resources(size: int) -> None:
    """Bound memory and time, on systems that say how much memory a process has."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        limit = now + 3 * size + ROOM_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _load(pickle: Path) -> object:
    with pickle.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    with torch.serialization.safe_globals(_ONLY_NAMED):
        # Mapped: a file that another process cuts short ends this process and no other.
        return torch.load(pickle, map_location="cpu", weights_only=True, mmap=is_archive)


def _state_dict(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError("it holds no tensors by name")
    found = cast("Mapping[str, object]", content)
    embedding = found.get("string_to_param")
    if isinstance(embedding, Mapping):
        found = {"emb_params": next(iter(cast("Mapping[str, object]", embedding).values()), None)}
    inner = found.get("state_dict", found)
    if isinstance(inner, Mapping):
        found = cast("Mapping[str, object]", inner)
    # Counters and settings among them are no weights.
    tensors = {str(name): value.detach() for name, value in found.items() if isinstance(value, Tensor)}
    strange = [name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized]
    strange += [name for name, value in tensors.items() if value.dtype not in TORCH_DTYPES.values()]
    if strange:
        raise ValueError(f"tensor {strange[0]} is of a kind that is not supported")
    if not tensors:
        raise ValueError("it holds no tensors by name")
    return tensors


def _in_our_words(message: str) -> str:
    """torch's advice is to trust the file, which is no way out."""
    named = re.search(r"(?:GLOBAL|Unsupported class|Unsupported global:?) ['\"]?([\w.]+)", message)
    if named:
        return f"it asks for {named[1]}, which is no data; nothing of it was run"
    if "memory" in message:
        return "it needs more memory than its size explains"
    if "eights only load failed" in message or "weights_only" in message:
        return "it is more than tensors and plain containers; nothing of it was run"
    return (message.strip() or "it is damaged").splitlines()[0][:160]


def _fail(problem: str) -> int:
    print(json.dumps({"problem": problem}))
    return 3


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
