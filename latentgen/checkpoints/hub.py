"""Fetching a model from the Hugging Face hub, on demand only: what is needed of it, resumable, weights hashed.

The files go into huggingface_hub's own cache (`checkpoints/hub_cache.py`), so that other tools find them and nothing is
kept twice. That library names the files, speaks to the hub and sends the user's token; what it does not do is keep a
file that was half there when the program ended, so weights are fetched here into `blobs/SHA256.incomplete` and take
their name when their hash is right. Pickles and programs are never fetched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from latentgen.checkpoints.hashes import sha256
from latentgen.checkpoints.header import open_header
from latentgen.checkpoints.hub_cache import (
    MAIN,
    HubName,
    cache_folder,
    offline_variable,
    repository_folder,
)
from latentgen.checkpoints.layout import (
    CONFIG,
    INDEX,
    SCHEDULER,
    TOKENIZER_FILES,
    WEIGHTS,
    Part,
    read_config,
    weight_files,
)
from latentgen.errors import InputError, ModelLoadError, ModelNotFoundError, RuntimeFailure

PARTS: Final[tuple[Part, ...]] = ("unet", "vae", "text_encoder")
VARIANT: Final = "fp16"
"""The one variant of weights files that `layout.weight_files` knows."""
SAFETENSORS: Final = ".safetensors"

_TOKENIZER: Final = tuple(f"tokenizer/{name}" for name in TOKENIZER_FILES)
_CONFIGS: Final = (INDEX, *(f"{part}/{CONFIG}" for part in PARTS), SCHEDULER.as_posix(), *_TOKENIZER)
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Report = Callable[[int, str], None]
"""Called with the bytes of a file that have come since the last call, and the file's path in the repository."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository as the hub lists it."""

    path: str
    size: int
    sha256: str | None
    """Of a file kept in large-file storage, as weights are; None for others."""


@dataclass(frozen=True, slots=True)
class Pull:
    """A model on the hub: which files are needed of it, and which of them are not here yet."""

    name: HubName
    commit: str
    files: tuple[RemoteFile, ...]
    """Configs first, so that a model that cannot be used is found before its weights are fetched."""
    missing: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def bytes_to_come(self) -> int:
        """Less what an interrupted pull has left."""
        return sum(file.size - _arrived(self.name, file) for file in self.missing)


def plan_pull(name: HubName, *, variant: str | None = None) -> Pull:
    """Ask the hub what `name` is made of; fetches nothing.

    variant: "fp16" takes half-precision weights where there are some.
    Raises InputError if going online is forbidden, ModelNotFoundError if the hub has no such model or does not give it,
    ModelLoadError if it holds nothing that can be used here, RuntimeFailure if the hub cannot be reached.
    """
    offline = offline_variable()
    if offline is not None:
        raise InputError(f"{name} cannot be pulled: {offline} is set", hint=f"unset {offline}")
    _prepare_library()
    from huggingface_hub import HfApi

    with _explained(name):
        api = HfApi(endpoint=_endpoint(), library_name="latentgen")
        found = api.model_info(name.repository, revision=name.revision, files_metadata=True)
    listed = {
        sibling.rfilename: RemoteFile(
            sibling.rfilename, sibling.size or 0, None if sibling.lfs is None else sibling.lfs.sha256
        )
        for sibling in found.siblings or ()
    }
    files = _needed(listed, name, variant)
    assert found.sha is not None, "the hub always says which commit it speaks of"
    snapshot = repository_folder(name.repository) / "snapshots" / found.sha
    return Pull(name, found.sha, files, tuple(file for file in files if not (snapshot / file.path).exists()))


def check_space(pull: Pull) -> None:
    """Raise RuntimeFailure unless the disk of the cache has room for what is to come."""
    place = cache_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < pull.bytes_to_come:
        raise RuntimeFailure(
            f"{pull.name} needs {gigabytes(pull.bytes_to_come)} more, and the disk of {cache_folder()} has "
            f"{gigabytes(free)} left",
            hint="free some, or set HF_HOME to a folder on another disk",
        )


def fetch(pull: Pull, report: Report) -> Path:
    """Fetch what is missing, and check it: the folder of the model, or the one file that was asked for.

    Raises as `plan_pull`, and ModelLoadError for a model that cannot be used here or a file that came out wrong. What
    has arrived stays, and the next call goes on from there.
    """
    paths: list[Path] = []
    for file in pull.files:
        if file.sha256 is not None and pull.name.file is None and file in pull.missing:
            _check_configs(paths)
        # The first is asked for by the revision's name, so that the cache notes what the name means.
        revision = pull.commit if paths else pull.name.revision or MAIN
        with _explained(pull.name):
            paths.append(_fetch_file(pull, file, revision, report))
    if pull.name.file is not None:
        open_header(paths[0], quantised=True)  # it may be of a model that runs elsewhere
        return paths[0]
    folder = _check_configs(paths)
    for part in PARTS:
        for path in weight_files(folder / part, part):
            open_header(path)
    return folder


def gigabytes(size: int) -> str:
    """A number of bytes for people: 4.27 GB, 335 MB, 12 kB."""
    if size >= 10**9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 10**6 else f"{size / 1e3:.0f} kB"


# What is needed of a repository


def _needed(listed: Mapping[str, RemoteFile], name: HubName, variant: str | None) -> tuple[RemoteFile, ...]:
    if name.file is not None:
        if not name.file.endswith(SAFETENSORS):
            raise InputError(f"{name.file} is no safetensors file: nothing else is pulled", hint=_singles(listed, name))
        if name.file not in listed:
            raise ModelNotFoundError(f"{name.repository} has no file {name.file}", hint=_singles(listed, name))
        return (listed[name.file],)
    if INDEX not in listed:
        raise ModelLoadError(f"{name} is no model folder: it has no {INDEX}", hint=_singles(listed, name))
    paths = [path for path in _CONFIGS if path in listed]
    weights = _weights(listed, name, variant)
    # Configs first, and with them the small files that say which shards there are.
    paths += sorted(weights, key=lambda path: path.endswith(SAFETENSORS))
    return tuple(listed[path] for path in paths)


def _weights(listed: Mapping[str, RemoteFile], name: HubName, variant: str | None) -> list[str]:
    """Of each part the file, or the shards: of the variant if there is one, else plain, else in half precision."""
    plain = [_part_files(listed, part, "") for part in PARTS]
    half = [_part_files(listed, part, f".{VARIANT}") for part in PARTS]
    if variant is not None and not any(half):
        raise ModelNotFoundError(f"{name} has no {variant} weights", hint="pull it without --variant")
    first, second = (plain, half) if variant is None else (half, plain)
    wanted = [one or other for one, other in zip(first, second, strict=True)]
    if [] in wanted:
        part = PARTS[wanted.index([])]
        problem = "only pickles, which are never pulled, or nothing"
        raise ModelLoadError(f"{name} has no {part}/{WEIGHTS[part]}: {problem}", hint=_singles(listed, name))
    return [path for paths in wanted for path in paths]


def _part_files(listed: Iterable[str], part: Part, variant: str) -> list[str]:
    """A part's weights in the repository, as `layout.weight_files` finds them on the disk; none if there are none."""
    stem = f"{part}/{WEIGHTS[part].removesuffix(SAFETENSORS)}"
    if f"{stem}{variant}{SAFETENSORS}" in listed:
        return [f"{stem}{variant}{SAFETENSORS}"]
    index = f"{stem}{SAFETENSORS}.index{variant}.json"
    shard = re.compile(re.escape(stem + variant) + r"-\d{5}-of-\d{5}\.safetensors")
    return [index, *(path for path in listed if shard.fullmatch(path))] if index in listed else []


def _singles(listed: Iterable[str], name: HubName) -> str:
    """The way out where a repository is no model folder: the safetensors files that lie at its top."""
    singles = sorted(path for path in listed if path.endswith(SAFETENSORS) and "/" not in path)
    if not singles:
        return f"{name.repository} holds no safetensors file that could be pulled by itself"
    more = f" … ({len(singles)} in all)" if len(singles) > 3 else ""
    return f"pull one file of it with --file: {', '.join(singles[:3])}{more}"


# Fetching


def _fetch_file(pull: Pull, file: RemoteFile, revision: str, report: Report) -> Path:
    from huggingface_hub import hf_hub_download

    if file.sha256 is not None and file in pull.missing:
        _fetch_blob(pull, file, report)
    path = Path(
        hf_hub_download(
            pull.name.repository,
            file.path,
            revision=revision,
            cache_dir=cache_folder(),
            endpoint=_endpoint(),
            library_name="latentgen",
        )
    )
    if pull.commit not in path.parts:
        raise RuntimeFailure(f"{pull.name} was changed on the hub just now", hint="pull it again")
    if file.sha256 is None and file in pull.missing:
        report(file.size, file.path)
    return path


def _fetch_blob(pull: Pull, file: RemoteFile, report: Report) -> None:
    """Put a file's content where huggingface_hub looks for it by its hash, going on from what is there of it."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    assert file.sha256 is not None, "only files with a hash are kept by it"
    blob = repository_folder(pull.name.repository) / "blobs" / file.sha256
    if blob.exists():
        report(file.size, file.path)
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = _part(pull.name, file)
    with part.open("ab") as out:
        _lock(out, pull.name)
        if out.seek(0, os.SEEK_END) > file.size:
            out.truncate(0)
        here = out.seek(0, os.SEEK_END)
        report(here, file.path)
        http_get(
            hf_hub_url(pull.name.repository, file.path, revision=pull.commit, endpoint=_endpoint()),
            _Counted(out, lambda count: report(count, file.path)),  # pyright: ignore[reportArgumentType]  what it uses of one
            resume_size=here,
            headers=build_hf_headers(library_name="latentgen"),
            expected_size=file.size,
        )
        out.flush()
        os.fsync(out.fileno())
        found = sha256(part)
        if found != file.sha256:
            part.unlink()
            raise ModelLoadError(
                f"{file.path} arrived damaged: its SHA-256 is {found[:16]}…, the hub says {file.sha256[:16]}…",
                hint="pull it again",
            )
        part.rename(blob)


class _Counted:
    """A file that tells of what is written to it: the parts of one that `http_get` uses."""

    def __init__(self, file: BinaryIO, tell_of: Callable[[int], None]) -> None:
        self._file, self._tell_of = file, tell_of

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._tell_of(len(data))
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """The server begins again, as one does that cannot resume."""
        before = self._file.seek(0, os.SEEK_END)
        now = self._file.truncate(0 if size is None else size)
        self._tell_of(now - before)
        return now


def _part(name: HubName, file: RemoteFile) -> Path:
    return repository_folder(name.repository) / "blobs" / f"{file.sha256}.incomplete"


def _arrived(name: HubName, file: RemoteFile) -> int:
    if file.sha256 is None:
        return 0
    part = _part(name, file)
    if part.with_suffix("").exists():  # whole, but not yet part of this snapshot
        return file.size
    try:
        return min(part.stat().st_size, file.size)
    except FileNotFoundError:
        return 0


def _lock(file: BinaryIO, name: HubName) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another process is pulling {name}", hint="wait for it") from None


# Checking what has come


def _check_configs(paths: Iterable[Path]) -> Path:
    """The folder that the configs lie in, read as a model. Raises ModelLoadError naming what our networks cannot be."""
    folder = next(path for path in paths if path.name == INDEX).parent
    read_config(folder)
    return folder


# The library


def _prepare_library() -> None:
    """Nothing but what is asked for goes out; nothing but our own words reaches the terminal."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when the library is first imported
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, logging

    # Another program's way of writing files, which would write past ours and cannot go on where one was given up.
    constants.HF_HUB_ENABLE_HF_TRANSFER = False  # pyright: ignore[reportAttributeAccessIssue]  gone from release 1.0
    logging.set_verbosity_error()
    disable_progress_bars()


def _endpoint() -> str | None:
    """A mirror's address, read now: the library reads it when it is imported, which may have been long ago."""
    return (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None


@contextmanager
def _explained(name: HubName) -> Generator[None]:
    """What the hub, the network and the disk may answer, as our errors: without tokens and signed addresses."""
    from huggingface_hub import errors

    # The HTTP library's own base class, which differs between releases of huggingface_hub.
    transport = cast("type[Exception]", errors.HfHubHTTPError.__mro__[1])
    try:
        yield
    except errors.GatedRepoError:
        raise ModelNotFoundError(
            f"{name.repository} is given only to those who have accepted its terms",
            hint="accept them on its page on the hub, then log in: hf auth login, or set HF_TOKEN",
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"the hub has no {name.repository}, or it is private",
            hint="check the name; for a private model log in: hf auth login, or set HF_TOKEN",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFoundError(f"{name.repository} has no revision {name.revision}") from None
    except errors.HfHubHTTPError as error:
        raise _refusal(name, error.response.status_code) from None
    except (transport, OSError) as error:
        raise _failure(name, error) from None


def _refusal(name: HubName, status: int) -> ModelNotFoundError | RuntimeFailure:
    if status in (401, 403):
        hint = "is HF_TOKEN right? a token needs read access to gated models"
        return ModelNotFoundError(f"the hub does not give out {name.repository} (HTTP {status})", hint=hint)
    return RuntimeFailure(f"the hub answered HTTP {status} when asked for {name.repository}", hint="try again later")


def _failure(name: HubName, error: BaseException) -> BaseException:
    number = error.errno if isinstance(error, OSError) else None
    if number in _DISK_FULL:
        return RuntimeFailure(
            f"the disk is full: {name} did not fit into {cache_folder()}",
            hint="what has arrived is kept; free some space and pull again",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return error  # a folder that may not be written to, as everywhere
    has_begun = any((repository_folder(name.repository) / "blobs").glob("*"))
    hint = "what has arrived is kept; pull it again to go on" if has_begun else "is there a network? see HF_ENDPOINT"
    return RuntimeFailure(f"{name} could not be fetched: the connection failed ({type(error).__name__})", hint=hint)
