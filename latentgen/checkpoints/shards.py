"""Weights split over several files: `*.safetensors.index.json` and the shards it names. No torch.

An index is data from elsewhere, so a shard is opened only if it lies where the index does: a plain file name, and no
link out of the folder but into the blobs of the Hugging Face cache that the folder itself belongs to.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from latentgen.checkpoints.header import open_header
from latentgen.errors import ModelLoadError
from latentgen.jsonfile import read_json

MAX_SHARDS = 1000


def find_shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names, in the order of their names, after comparing their headers with it.

    Raises ModelLoadError for a shard that is missing, lies elsewhere, or holds other tensors than the index says, and
    for a shard beside them that the index does not name.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise ModelLoadError(f"{index}: weight_map must map tensors to files")
    places = cast("dict[str, str]", listed)
    names = sorted(set(places.values()))
    if len(names) > MAX_SHARDS:
        raise ModelLoadError(f"{index} names {len(names)} files; at most {MAX_SHARDS} are accepted")
    shards = tuple(_shard(index, name) for name in names)
    for shard in shards:
        _check_tensors(index, shard, {tensor for tensor, file in places.items() if file == shard.name})
    stem = index.name.partition(".")[0]
    others = sorted(path.name for path in index.parent.glob(f"{stem}*-of-*.safetensors") if path.name not in names)
    if others and _of_same_set(others[0], names[0]):
        raise ModelLoadError(
            f"{index} does not name {others[0]}, which lies beside it", hint="download the folder again"
        )
    return shards


def _shard(index: Path, name: str) -> Path:
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise ModelLoadError(f"{index} names {name!r}, which is no file of its own folder")
    path = index.with_name(name)
    if not path.exists():
        raise ModelLoadError(f"{index} names {name}, which is missing", hint="download the folder again")
    if not _lies_inside(path):
        raise ModelLoadError(f"{path} is a link out of its folder", hint="copy the file into the folder")
    return path


def _lies_inside(path: Path) -> bool:
    real = path.resolve()
    if real.parent == path.parent.resolve():
        return True
    # models--OWNER--NAME/snapshots/REVISION/... -> models--OWNER--NAME/blobs/HASH
    ancestors = path.parent.resolve().parents
    return any(above.name == "snapshots" and real.parent == above.parent / "blobs" for above in ancestors)


def _check_tensors(index: Path, shard: Path, wanted: set[str]) -> None:
    found = {entry.name for entry in open_header(shard).entries}
    for problem, names in (("is to hold", wanted - found), ("is not to hold", found - wanted)):
        if names:
            shown = ", ".join(sorted(names)[:3])
            raise ModelLoadError(f"{index}: {shard.name} {problem} {len(names)} tensors ({shown})")


def _of_same_set(a: str, b: str) -> bool:
    """Whether two shards differ in their number only: a half-precision set may lie beside the full one."""
    return _without_number(a) == _without_number(b)


def _without_number(name: str) -> str:
    head, _, tail = name.rpartition("-of-")
    return head.rstrip("0123456789") + tail
