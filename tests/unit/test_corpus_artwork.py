"""Artwork: fetched by hash, read from a folder, recoloured, and drawn; all with pictures made here."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from latentgen.corpus import artwork as artwork_module
from latentgen.corpus.artwork import FLUENT, NOTO, Artwork, fetch_artwork, fluent_file, noto_file
from latentgen.corpus.compose import render_scene
from latentgen.corpus.scene import Noun, SceneSpec, Subject
from latentgen.corpus.sprites import choose_artwork, recoloured
from latentgen.corpus.vocabulary import all_nouns
from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure

DOG = Noun("dog", "land_animal", fluent="1f415", noto="dog")
FOX = Noun("fox", "head", fluent="1f98a", noto="fox")
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10" width="224" height="224"><path d="M2 2h6v6H2z" fill="#c00"/></svg>'  # fmt: skip # noqa: E501


def _webp(colour: str = "#c03030") -> bytes:
    picture = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(picture).ellipse((8, 16, 47, 55), fill=colour)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", lossless=True)
    return stream.getvalue()


@pytest.fixture
def artwork(tmp_path: Path) -> Artwork:
    """A folder with pictures of the dog and the fox only."""
    folder = tmp_path / "artwork"
    for noun in (DOG, FOX):
        for file, data in ((fluent_file(noun), _webp()), (noto_file(noun), SVG.encode())):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
    packages = {package.spec: package.sha256 for package in (FLUENT, NOTO)}
    (folder / "artwork.json").write_text(json.dumps({"packages": packages}))
    return Artwork(folder)


def test_pictures_are_cropped_to_what_is_visible(artwork: Artwork) -> None:
    assert artwork.pixels("fluent/1f415.webp").shape == (40, 40, 4)
    icon = artwork.pixels("noto/dog.svg")
    assert abs(icon.shape[0] - 0.6 * 224) <= 2
    assert tuple(icon[60, 60]) == (204, 0, 0, 255)


def test_a_missing_picture_and_a_wrong_version_are_one_line_errors(artwork: Artwork) -> None:
    with pytest.raises(ModelNotFoundError, match=r"artwork fluent/1f600\.webp is missing") as caught:
        artwork.pixels("fluent/1f600.webp")
    assert caught.value.hint == "fetch it with: latentgen data fetch-assets"
    (artwork.folder / "artwork.json").write_text(json.dumps({"packages": {"@lobehub/fluent-emoji-3d@0.9.0": "00"}}))
    with pytest.raises(ModelNotFoundError, match="another version"):
        Artwork(artwork.folder)


@pytest.mark.parametrize("noun", [DOG, FOX])
def test_sprites_are_drawn_into_the_scene(noun: Noun, artwork: Artwork) -> None:
    scene = SceneSpec("meadow", "day", (Subject(noun),), size="large")
    picture = render_scene(scene, 2, 128, artwork).astype(int)
    assert np.array_equal(picture, render_scene(scene, 2, 128, artwork))
    reddish = (
        (picture[..., 0] > 120) & (picture[..., 0] > 2 * picture[..., 2]) & (picture[..., 0] > 2 * picture[..., 1])
    )
    assert reddish.mean() > 0.03


def test_a_scene_that_needs_artwork_says_so() -> None:
    with pytest.raises(ModelNotFoundError, match="a scene with dog cannot be drawn without artwork"):
        render_scene(SceneSpec("meadow", "day", (Subject(DOG),)), 0, 64)


def test_both_drawings_of_a_noun_are_used_unless_one_is_poor() -> None:
    def shares(noun: Noun, setting: str = "meadow") -> set[str | None]:
        return {choose_artwork(noun, setting, np.random.default_rng(seed)) for seed in range(30)}  # type: ignore[arg-type]

    assert shares(DOG) == {"fluent/1f415.webp", "noto/dog.svg"}
    assert shares(Noun("bus", "vehicle", fluent="1f68c", noto="bus")) == {"noto/bus.svg"}
    assert shares(Noun("raccoon", "head", fluent="1f99d", noto="raccoon")) == {"fluent/1f99d.webp"}
    duck = Noun("duck", "land_animal", fluent="1f986", noto="duck")
    assert shares(duck) == {"fluent/1f986.webp", "noto/duck.svg"}
    assert shares(duck, "lake") == {"fluent/1f986.webp"}
    assert shares(Noun("castle", "building", "castle")) == {None}


@pytest.mark.parametrize(
    ("colour", "expected"),
    [("blue", (50, 112, 200)), ("green", (50, 200, 80)), ("white", (228, 212, 212)), ("black", (68, 62, 62))],
)
def test_recolouring_turns_the_main_hue_and_leaves_grays(colour: str, expected: tuple[int, int, int]) -> None:
    sprite = np.zeros((20, 20, 4), np.uint8)
    sprite[..., 3] = 255
    sprite[:, :14, :3] = (200, 50, 50)
    sprite[:, 14:, :3] = (90, 90, 90)
    result = recoloured(sprite, colour)
    assert np.abs(result[0, 0, :3].astype(int) - expected).max() <= 12
    assert tuple(result[0, 19]) == (90, 90, 90, 255)
    assert tuple(sprite[0, 0]) == (200, 50, 50, 255)


def _tarball(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _install_fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An npm whose `pack SPEC --silent --pack-destination DIR` runs the script; $2 is the spec, $5 the folder."""
    npm = folder / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")


def test_fetching_checks_hashes_and_keeps_the_vocabulary_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [noun for noun in all_nouns() if noun.drawing is None]
    fluent = _tarball({f"package/assets/{code}.webp": _webp() for code in {noun.fluent for noun in drawn} | {"1f4a9"}})
    body = '<path d="M2 2h6v6H2z"/>'
    icons = {"icons": {noun.noto: {"body": body, "width": 10, "height": 10} for noun in drawn}}
    noto = _tarball({"package/icons.json": json.dumps(icons).encode()})
    (tmp_path / "fluent.tgz").write_bytes(fluent)
    (tmp_path / "noto.tgz").write_bytes(noto)
    packages = tuple(
        replace(package, sha256=hashlib.sha256(data).hexdigest()) for package, data in ((FLUENT, fluent), (NOTO, noto))
    )
    monkeypatch.setattr(artwork_module, "FLUENT", packages[0])
    monkeypatch.setattr(artwork_module, "NOTO", packages[1])
    monkeypatch.setattr(artwork_module, "PACKAGES", packages)
    _install_fake_npm(
        tmp_path, monkeypatch, f'case "$2" in *fluent*) f=fluent;; *) f=noto;; esac; cp {tmp_path}/$f.tgz "$5/$f.tgz"'
    )
    folder = fetch_artwork(tmp_path / "cache" / "artwork")
    kept = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert kept == {fluent_file(n) for n in drawn} | {noto_file(n) for n in drawn} | {"artwork.json", "NOTICE"}
    assert body in (folder / "noto" / "dog.svg").read_text()
    assert "MIT License" in (folder / "NOTICE").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["artwork"]
    monkeypatch.setenv("PATH", "")  # What is there is not fetched again
    assert fetch_artwork(folder) == folder


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo x > "$5/a.tgz"', "@lobehub/fluent-emoji-3d@1.1.0 is not the expected package: sha256 "),
        ('echo "npm error network unreachable" >&2; exit 1', "npm could not fetch .*: npm error network unreachable"),
    ],
)
def test_a_failed_fetch_leaves_nothing_behind(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_fake_npm(tmp_path, monkeypatch, script)
    with pytest.raises(RuntimeFailure, match=message):
        fetch_artwork(tmp_path / "cache" / "artwork")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["cat.png"], "holds cat.png and is no artwork folder"),
        (["fluent/1f415.webp"], "holds fluent and is no artwork folder"),
        (["artwork.json", "fluent/1f415.webp", "mine.txt"], "holds mine.txt and is no artwork folder"),
    ],
)
def test_a_folder_of_the_users_is_refused_before_anything_is_fetched(
    files: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_fake_npm(tmp_path, monkeypatch, f"touch {tmp_path}/called; exit 1")
    for file in files:
        (tmp_path / "mine" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / file).write_text("{}")
    with pytest.raises(InputError, match=told):
        fetch_artwork(tmp_path / "mine")
    with pytest.raises(InputError, match="is a file"):
        fetch_artwork(tmp_path / "mine" / files[0])
    assert all((tmp_path / "mine" / file).read_text() == "{}" for file in files)
    assert not (tmp_path / "called").exists()


def test_fetching_without_npm_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeFailure, match="needs the npm client") as caught:
        fetch_artwork(tmp_path / "artwork")
    assert "--assets" in str(caught.value)
