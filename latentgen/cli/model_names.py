"""What `--model` may be: a folder, a safetensors file, a name of a model that is here. Nothing is ever fetched for it.

Names are `embedded`, what lies in latentgen's own models folder, and `OWNER/NAME` of what was pulled from the hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from latentgen import embedded_model_path
from latentgen.errors import LatentgenError, ModelLoadError, ModelNotFoundError
from latentgen.user_folders import data_home

EMBEDDED, EMBEDDED_TITLE = "embedded", "the embedded model"
SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")

Home = Literal["package", "models folder", "hub cache"]


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model that is here under a name."""

    name: str
    path: Path
    """A model folder or a single file."""
    home: Home
    architecture: str | None
    """Such as "SD 1.x, inpainting"; None if the model cannot be used."""
    problem: str | None
    """Why it cannot be used, as when a download was interrupted; None if it can."""

    @property
    def size(self) -> int:
        """Bytes on the disk, links followed."""
        files = (path for path in self.path.rglob("*") if path.is_file()) if self.path.is_dir() else (self.path,)
        return sum(path.stat().st_size for path in files)


def models_folder() -> Path:
    """Where a user may put models under names of their own: `$XDG_DATA_HOME/latentgen/models`."""
    return data_home() / "latentgen" / "models"


def own_models() -> dict[str, Path]:
    """The models in latentgen's own places by name, the default first. Only looks at the names of files."""
    embedded = {EMBEDDED: embedded_model_path()} if embedded_model_path().is_dir() else {}
    try:
        found = sorted(path for path in models_folder().iterdir() if not path.name.startswith("."))
    except OSError:  # there is no such folder, as on most machines
        return embedded
    folders = {path.name: path for path in found if path.is_dir()}
    files = {path.stem: path for path in found if path.suffix == SAFETENSORS and path.is_file()}
    return embedded | {name: path for name, path in sorted((files | folders).items()) if name != EMBEDDED}


def name_of(model: Path) -> str:
    """How a model is spoken of, by its folder or file."""
    return EMBEDDED_TITLE if model == own_models().get(EMBEDDED) else model.resolve().name


def installed_models() -> dict[str, Path]:
    """Folders and files by name, the default first; only those that can be used, from their configs and headers."""
    return {model.name: model.path for model in look_around() if model.problem is None}


def look_around() -> Iterator[InstalledModel]:
    """Every model that is here, with what is wrong with it if it cannot be used."""
    for name, path in own_models().items():
        yield _look_at(name, path, "package" if name == EMBEDDED else "models folder")
    yield from _in_hub_cache()


def resolve_model(text: str | None) -> Path:
    """The folder or the safetensors file of a model; the embedded one if None. Nothing is downloaded for any name.

    Raises ModelNotFoundError if it is not there, ModelLoadError if it is a file that is never opened.
    """
    name = EMBEDDED if text is None else text
    own = own_models().get(name)
    if own is not None:
        return own
    if name == EMBEDDED:
        raise ModelNotFoundError(
            f"the embedded model is not installed: there is no folder {embedded_model_path()}",
            hint="give a model folder with --model, or install latentgen's wheel",
        )
    path = Path(os.path.expanduser(name))
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelNotFoundError(f"--model cannot be looked for ({reason}): {name}") from None
    if not exists:
        return _in_cache(name)
    if not is_folder and path.suffix.lower() in PICKLES:
        raise ModelLoadError(
            f"--model {name} is a file; a model is a folder or a {SAFETENSORS} file, and pickles are never opened here",
            hint=f"turn it into one: latentgen convert {quote(str(path))} {quote(path.stem + SAFETENSORS)}",
        )
    return path


def named_folder(path: Path | None) -> Path | None:
    """A path as it is; where nothing lies there, the place of the model of that name, if there is one.

    For options that take a folder with a part of a model, which may be a whole one. It answers for nothing: whoever
    opens the path says what is wrong with it.
    """
    if path is None or os.path.exists(path):
        return path
    try:
        return resolve_model(str(path))
    except LatentgenError:
        return path


def named_text_encoder(text: str | None) -> str | None:
    """What --text-encoder says, and where it names a model of latentgen's own places, that model's."""
    own = own_models().get(text or "")
    return text if own is None or os.path.exists(text or "") else str(own)


def _in_cache(name: str) -> Path:
    """The model of the hub that `name` names, if it was pulled."""
    from latentgen.checkpoints.hub_cache import cached_snapshots, find_cached, parse_hub_name
    from latentgen.checkpoints.layout import INDEX

    hub_name = parse_hub_name(name)
    if hub_name is None or _looks_like_a_path(name, hub_name.file):
        close = _close_names(name)
        raise ModelNotFoundError(
            f"there is no model folder {name}", hint=f"did you mean {close}?" if close else "see: latentgen models list"
        )
    found = find_cached(hub_name)
    if found is None:
        others = ", ".join(str(snapshot.name) for snapshot in cached_snapshots(hub_name.repository))
        here = f"; of it there is {others}" if others else ""
        raise ModelNotFoundError(
            f"there is no model folder {name}, and the hub's model of that name is not here{here}",
            hint=f"to fetch it: latentgen models pull {name}",
        )
    if found.is_dir() and not (found / INDEX).exists():
        files = [path.name for path in sorted(found.glob(f"*{SAFETENSORS}"))]
        if len(files) == 1:
            return found / files[0]
        named = ", ".join(f"{name}:{file}" for file in files) or f"fetch it: latentgen models pull {name}"
        raise ModelNotFoundError(f"of {name} there are only single files here", hint=named)
    return found


def _looks_like_a_path(name: str, file: str | None) -> bool:
    """A mistyped path: its first folder is here, or it ends as a weights file does."""
    return os.path.exists(name.partition("/")[0]) or (file is None and name.endswith((SAFETENSORS, *PICKLES)))


def _close_names(name: str) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, own_models(), n=1)), None)


def _in_hub_cache() -> Iterator[InstalledModel]:
    """Snapshots that are Stable Diffusion folders, whole or not, and single files that hold a whole model."""
    from dataclasses import replace

    from latentgen.checkpoints.hub_cache import cached_snapshots
    from latentgen.checkpoints.layout import INDEX

    for snapshot in cached_snapshots():
        if (snapshot.folder / INDEX).exists() and _is_stable_diffusion(snapshot.folder / INDEX):
            yield _look_at(str(snapshot.name), snapshot.folder, "hub cache")
        for path in sorted(snapshot.folder.glob(f"*{SAFETENSORS}")):
            model = _look_at(str(replace(snapshot.name, file=path.name)), path, "hub cache")
            if model.problem is None:
                yield model


def _is_stable_diffusion(index: Path) -> bool:
    from latentgen.checkpoints.diffusers_config import PIPELINES
    from latentgen.jsonfile import read_json

    try:
        return read_json(index).get("_class_name") in PIPELINES
    except LatentgenError:  # a torn file of somebody else's
        return False


def _look_at(name: str, path: Path, home: Home) -> InstalledModel:
    from latentgen.checkpoints.header import QUANTISED_BYTES
    from latentgen.checkpoints.identify import identify

    try:
        identity = identify(path)
    except LatentgenError as error:
        return InstalledModel(name, path, home, None, error.message)
    problem = None
    if identity.kind not in ("model", "folder"):
        problem = f"it is {identity.title}, not a whole model"
    elif not identity.is_supported:
        problem = f"it is {identity.title}, which latentgen does not run"
    elif identity.missing:
        problem = f"{len(identity.missing)} tensors are missing, for instance {identity.missing[0]}"
    elif identity.unexpected:
        problem = f"{len(identity.unexpected)} tensors are unknown, for instance {identity.unexpected[0]}"
    elif quantised := sorted(set(identity.dtypes) & set(QUANTISED_BYTES)):
        problem = f"its weights are {', '.join(quantised)}, which latentgen does not read"
    marks = ["inpainting"] if identity.is_inpainting else []
    marks += ["v-prediction"] if identity.prediction_type == "v_prediction" else []
    words = ", ".join([identity.architecture or "unknown", *marks])
    return InstalledModel(name, path, home, words if problem is None else None, problem)
