"""The artwork of the nouns that are not drawn procedurally: where it lies, how it is fetched, how it is read.

Microsoft Fluent Emoji 3D (MIT) and Google Noto Emoji (Apache-2.0) come from npm by name, version and sha256. Only the
pictures the vocabulary names are kept (`fluent/<code points>.webp`, `noto/<icon>.svg`); they are never part of this
package. A folder made by `latentgen data fetch-assets` may be copied to machines without a network.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skia
from numpy.typing import NDArray
from PIL import Image

from latentgen.corpus.scene import Noun
from latentgen.corpus.vocabulary import all_nouns
from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure
from latentgen.jsonfile import read_json
from latentgen.user_folders import cache_home

FETCH_HINT = "fetch it with: latentgen data fetch-assets"
MANIFEST = "artwork.json"
CONTENT = frozenset({MANIFEST, "NOTICE", "fluent", "noto"})
"""All that `fetch_artwork` writes into a folder."""
NOTO_SIZE_PX = 224
VISIBLE_ALPHA = 20


@dataclass(frozen=True, slots=True)
class ArtworkPackage:
    """An npm package, pinned to its exact bytes."""

    name: str
    version: str
    sha256: str
    """Of the package's tarball."""
    notice: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"


FLUENT = ArtworkPackage(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    notice="Fluent Emoji, Copyright (c) Microsoft Corporation, MIT License",
)
NOTO = ArtworkPackage(
    name="@iconify-json/noto",
    version="1.2.9",
    sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    notice="Noto Emoji, Copyright Google LLC, Apache License 2.0",
)
PACKAGES = (FLUENT, NOTO)


def default_artwork_folder() -> Path:
    """`$XDG_CACHE_HOME/latentgen/artwork`, or the same under `~/.cache`."""
    return cache_home() / "latentgen" / "artwork"


def fluent_file(noun: Noun) -> str:
    """Path of a noun's Fluent picture inside an artwork folder."""
    return f"fluent/{noun.fluent}.webp"


def noto_file(noun: Noun) -> str:
    """Path of a noun's Noto picture inside an artwork folder."""
    return f"noto/{noun.noto}.svg"


class Artwork:
    """An artwork folder; pictures are read when first asked for and kept."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelNotFoundError if the folder holds no artwork, or another version of it."""
        self.folder = folder
        self._pixels: dict[str, NDArray[np.uint8]] = {}
        manifest = folder / MANIFEST
        if not manifest.is_file():
            raise ModelNotFoundError(f"no artwork in {folder}", hint=FETCH_HINT)
        if read_json(manifest).get("packages") != _package_hashes():
            raise ModelNotFoundError(f"the artwork in {folder} is another version than this one needs", hint=FETCH_HINT)

    def pixels(self, file: str) -> NDArray[np.uint8]:
        """One picture, cropped to what is visible: (height, width, 4) uint8, straight alpha."""
        if file not in self._pixels:
            path = self.folder / file
            if not path.is_file():
                raise ModelNotFoundError(f"artwork {file} is missing from {self.folder}", hint=FETCH_HINT)
            if path.suffix == ".svg":
                whole = _rasterise_svg(path.read_bytes())
            else:
                whole = np.array(Image.open(path).convert("RGBA"))
            self._pixels[file] = _cropped_to_visible(whole)
        return self._pixels[file]


def _cropped_to_visible(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    visible = pixels[..., 3] > VISIBLE_ALPHA
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _rasterise_svg(svg: bytes) -> NDArray[np.uint8]:
    surface = skia.Surface(NOTO_SIZE_PX, NOTO_SIZE_PX)
    skia.SVGDOM.MakeFromStream(skia.MemoryStream.MakeCopy(svg)).render(surface.getCanvas())
    return surface.makeImageSnapshot().toarray(colorType=skia.kRGBA_8888_ColorType)


def _package_hashes() -> dict[str, str]:
    return {package.spec: package.sha256 for package in PACKAGES}


def fetch_artwork(folder: Path) -> Path:
    """Fetch the packages with the npm client, check their hashes, and keep the vocabulary's pictures in `folder`.

    Does nothing if the folder already holds this version; another version is replaced. Raises InputError if the folder
    holds anything else, and RuntimeFailure if npm is absent or fails, or if a package is not the expected one.
    """
    try:
        return Artwork(folder).folder
    except ModelNotFoundError:
        _check_replaceable(folder)
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".artwork-") as scratch:
        new = Path(scratch) / "new"
        _extract_fluent(_download(FLUENT, Path(scratch)), new / "fluent")
        _extract_noto(_download(NOTO, Path(scratch)), new / "noto")
        (new / "NOTICE").write_text("".join(f"{package.notice}\n" for package in PACKAGES), encoding="utf-8")
        (new / MANIFEST).write_text(json.dumps({"packages": _package_hashes()}, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    return folder


def _check_replaceable(folder: Path) -> None:
    """Raise InputError unless `folder` is absent, empty, or artwork that may be deleted for another version of it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set[str]()
    if found and not (MANIFEST in found and found <= CONTENT):
        other = min(found - CONTENT, default=min(found))
        raise InputError(f"{folder} holds {other} and is no artwork folder", hint="name a new or empty folder")


def _download(package: ArtworkPackage, scratch: Path) -> bytes:
    """The package's tarball, by the npm client, so that a mirror the user has set up is used."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeFailure(
            "fetching artwork needs the npm client, which is not installed",
            hint="install Node.js, or copy an artwork folder here and name it with --assets",
        )
    target = scratch / package.sha256
    target.mkdir()
    command = [npm, "pack", package.spec, "--silent", "--pack-destination", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    tarballs = list(target.glob("*.tgz"))
    if result.returncode != 0 or len(tarballs) != 1:
        reason = result.stderr.strip().splitlines()
        raise RuntimeFailure(f"npm could not fetch {package.spec}: {reason[-1] if reason else 'no tarball came'}")
    data = tarballs[0].read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != package.sha256:
        raise RuntimeFailure(f"{package.spec} is not the expected package: sha256 {found}, expected {package.sha256}")
    return data


def _extract_fluent(tarball: bytes, target: Path) -> None:
    target.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        for code in sorted({noun.fluent for noun in all_nouns() if noun.fluent is not None}):
            member = archive.extractfile(f"package/assets/{code}.webp")
            if member is None:
                raise RuntimeFailure(f"{FLUENT.spec} has no picture {code}")
            (target / f"{code}.webp").write_bytes(member.read())


def _extract_noto(tarball: bytes, target: Path) -> None:
    target.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        member = archive.extractfile("package/icons.json")
        if member is None:
            raise RuntimeFailure(f"{NOTO.spec} has no icons.json")
        icons: dict[str, Any] = json.load(member)["icons"]
    for name in sorted({noun.noto for noun in all_nouns() if noun.noto is not None}):
        icon = icons[name]
        width, height = icon.get("width", 128), icon.get("height", 128)
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{NOTO_SIZE_PX}" height="{NOTO_SIZE_PX}">{icon["body"]}</svg>'
        )
        (target / f"{name}.svg").write_text(svg, encoding="utf-8")
