"""The Hugging Face cache on this machine: which models of the hub are here, by name. Never a socket.

The layout is huggingface_hub's ("Understand caching" in its documentation): `models--OWNER--NAME/` holds `blobs/`
(contents, each named by its hash), `refs/` (what a branch or tag means) and `snapshots/COMMIT/` (links into `blobs/`).
It is read here without that library, whose import takes longer than the reading.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latentgen.errors import RuntimeFailure

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

MAIN: Final = "main"
"""The branch that a name without a revision means."""

_NAME: Final = re.compile(
    r"(?P<repository>\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(?P<revision>[\w.][\w./-]{0,199}))?(?::(?P<file>[^:\\]{1,255}))?",
    re.ASCII,
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TRUE: Final = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True, slots=True)
class HubName:
    """A model of the hub, or one file of it: `OWNER/NAME[@REVISION][:FILE]`."""

    repository: str
    """`OWNER/NAME`."""
    revision: str | None = None
    """A branch, a tag or a whole commit hash; None is the main branch."""
    file: str | None = None
    """A path in the repository; None is the model folder that the repository is."""

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision}"
        return f"{self.repository}{at}" + ("" if self.file is None else f":{self.file}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository as far as it is here."""

    name: HubName
    folder: Path


@dataclass(frozen=True, slots=True)
class Removal:
    """What removing a model would delete: commits, and the bytes that nothing else in the cache needs."""

    name: HubName
    commits: tuple[str, ...]
    freed_bytes: int


def parse_hub_name(text: str) -> HubName | None:
    """The name of a model of the hub; None for a text that cannot be one, as a path with `..` in it."""
    match = _NAME.fullmatch(text)
    if match is None or not text.isprintable():
        return None
    repository, revision, file = match["repository"], match["revision"], match["file"]
    if ".." in repository or "--" in repository or (revision is not None and ".." in revision):
        return None
    if file is not None and not all(part not in ("", ".", "..") for part in file.split("/")):
        return None
    return HubName(repository, revision, file)


def cache_folder() -> Path:
    """Where huggingface_hub keeps its files, by its own variables: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if own:
        return _expanded(own)
    home = os.environ.get("HF_HOME")
    if home:
        return _expanded(home) / "hub"
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def offline_variable() -> str | None:
    """The variable of the environment that forbids going online, as huggingface_hub reads it; None if none does."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").upper() in _TRUE), None)


def repository_folder(repository: str) -> Path:
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def find_cached(name: HubName) -> Path | None:
    """The folder of a snapshot, or the one file that `name` names; None if it is not here."""
    place = repository_folder(name.repository)
    revision = MAIN if name.revision is None else name.revision
    commit = revision if _COMMIT.fullmatch(revision) else _read_ref(place / "refs" / revision)
    if commit is None:
        return None
    found = place / "snapshots" / commit / (name.file or "")
    return found if found.exists() else None


def cached_snapshots(repository: str | None = None) -> Iterator[Snapshot]:
    """Every snapshot in the cache, or those of one repository; named by its branch or tag if it has one."""
    pattern = "models--*--*" if repository is None else repository_folder(repository).name
    for place in sorted(cache_folder().glob(pattern)):
        name = parse_hub_name(place.name.removeprefix("models--").replace("--", "/", 1))
        if name is None:
            continue
        refs = _refs(place)
        for folder in sorted((place / "snapshots").glob("*")):
            if _COMMIT.fullmatch(folder.name) and folder.is_dir():
                revision = refs.get(folder.name, folder.name)
                yield Snapshot(HubName(name.repository, None if revision == MAIN else revision), folder)


def cached_name(path: Path) -> HubName | None:
    """The name of a snapshot folder, or of a file in one; None for a path that is not in the cache."""
    try:
        inside = Path(os.path.abspath(path)).relative_to(os.path.abspath(cache_folder()))
    except ValueError:
        return None
    match inside.parts:
        case (str(place), "snapshots", str(commit), *rest):
            repository = place.removeprefix("models--").replace("--", "/", 1)
            revision = _refs(cache_folder() / place).get(commit, commit)
            return HubName(repository, None if revision == MAIN else revision, "/".join(rest) or None)
        case _:
            return None


def plan_removal(name: HubName) -> Removal | None:
    """What `remove` would delete: the commit of `name.revision`, or all if that is None; None if nothing is here.

    No commits: what an interrupted pull left before it had any.
    """
    place = repository_folder(name.repository)
    if name.revision is None and not any(cached_snapshots(name.repository)):
        begun = [each for each in place.glob("blobs/*") if each.is_file()]
        return Removal(name, (), sum(each.stat().st_size for each in begun)) if begun else None
    information = _scan(name.repository)
    if information is None:
        return None
    commits = tuple(
        sorted(
            revision.commit_hash
            for repository in information.repos
            for revision in repository.revisions
            if name.revision is None or name.revision == revision.commit_hash or name.revision in revision.refs
        )
    )
    if not commits:
        return None
    return Removal(name, commits, information.delete_revisions(*commits).expected_freed_size)


def remove(removal: Removal) -> None:
    """Delete the commits from the cache; files that other commits of the model share stay."""
    if not removal.commits:
        shutil.rmtree(repository_folder(removal.name.repository))
        return
    information = _scan(removal.name.repository)
    if information is not None:
        information.delete_revisions(*removal.commits).execute()
    for snapshot in cached_snapshots(removal.name.repository):
        if snapshot.folder.name in removal.commits:
            raise RuntimeFailure(f"{snapshot.folder} cannot be deleted", hint="is it yours?")


def _scan(repository: str) -> HFCacheInfo | None:
    """The library's view of one repository; None if it is not here.

    Of one only: it deletes by commit, and copies of a repository under other names share their commits.
    """
    from huggingface_hub import scan_cache_dir

    if not cache_folder().is_dir():
        return None
    found = scan_cache_dir(cache_folder())
    own = frozenset(each for each in found.repos if (each.repo_type, each.repo_id) == ("model", repository))
    return replace(found, repos=own) if own else None


def _refs(place: Path) -> dict[str, str]:
    """What each commit is called; `main` where that is one of several names."""
    refs: dict[str, str] = {}
    for path in sorted((place / "refs").rglob("*")):
        commit = _read_ref(path)
        if commit is not None:
            ref = path.relative_to(place / "refs").as_posix()
            refs[commit] = ref if ref == MAIN else refs.get(commit, ref)
    return refs


def _read_ref(path: Path) -> str | None:
    try:
        commit = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):  # no such branch here, a folder of branches, or no text
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(text)))
