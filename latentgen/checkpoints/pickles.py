"""Torch's pickles (`.ckpt`, `.pt`, `.bin`) as data: their tensors copied into a safetensors file, and nothing else.

A pickle is a program. It is run by `torch.load(weights_only=True)` alone, which knows tensors and plain containers and
refuses everything else, in a process of its own (`pickle_process.py`) whose memory is limited: whatever such a file
does, it does not do it here. The zip archive around it is checked before that, from its directory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from latentgen.checkpoints.header import MAX_TENSORS, is_pickle, recognise_foreign
from latentgen.errors import ModelLoadError, ModelNotFoundError

MAX_NAMES_BYTES: Final = 64 * 2**20
"""Of `data.pkl`, which holds names and no numbers: 0.5 MB for SD 1.5."""


def copy_tensors(pickle: Path, into: Path) -> None:
    """Write the tensors of a pickle's state dict to the safetensors file `into`, in their own dtypes.

    The state dict is the whole, or what lies under `state_dict`; an embedding of A1111 becomes its one tensor,
    `emb_params`. Raises ModelNotFoundError if there is no such file, ModelLoadError for an archive whose sizes lie, for
    a pickle that is more than data, and for one that needs more memory than its size explains.
    """
    check_pickle(pickle)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "latentgen.checkpoints.pickle_process", str(pickle), str(into)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    try:
        problem = str(json.loads(done.stdout.splitlines()[-1])["problem"])
    except (IndexError, KeyError, TypeError, ValueError):
        problem = f"the process that read it ended with {done.returncode}"
    raise ModelLoadError(f"{pickle} cannot be read as data: {problem}", hint="get the model as .safetensors")


def check_pickle(path: Path) -> None:
    """Raise unless a file may be one of torch's pickles whose archive, if it is one, holds what its directory says.

    torch never compresses, so the entries together are smaller than the file: a zip bomb is one whose are not.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(1024)
        if not is_pickle(start):
            what, hint = recognise_foreign(start, path) or ("is no pickle of torch", None)
            raise ModelLoadError(f"{path} {what}", hint=hint)
        if not start.startswith(b"PK"):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such file: {path}") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ModelLoadError(f"{path} is a damaged zip archive: {error}", hint="download it again") from None
    if len(entries) > MAX_TENSORS:
        raise ModelLoadError(f"{path} is a zip archive of {len(entries)} files; no network here has that many tensors")
    unpacked = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > size:
        raise ModelLoadError(
            f"{path} is a zip archive of {size} bytes that unpacks to {unpacked}, which torch never writes",
            hint="it is no model; do not use it",
        )
    if any(entry.filename.endswith(".pkl") and entry.file_size > MAX_NAMES_BYTES for entry in entries):
        raise ModelLoadError(f"{path}: the pickle inside is larger than {MAX_NAMES_BYTES} bytes; it is no model")
