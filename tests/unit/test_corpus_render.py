"""A corpus on disk: the same bytes however it is made, resumed, or refused; and the command that makes it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentgen.cli.app import main
from latentgen.corpus import render, sheets, wordings
from latentgen.corpus.captions import caption
from latentgen.corpus.compose import render_scene
from latentgen.corpus.hero_scenes import ALL_COLOURS, HEROES_20, anywhere
from latentgen.corpus.records import make_record, scene_of
from latentgen.corpus.render import CorpusArguments, render_corpus
from latentgen.corpus.scene import Noun, SceneSpec, Subject
from latentgen.corpus.splits import held_out_pairs
from latentgen.data.records import list_records
from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure

SMALL = CorpusArguments(count=5, seed=40, size_px=32, vocabulary="heroes", captions_per_image=2)
FOLDER = CorpusArguments(count=5, seed=40, size_px=32, vocabulary="heroes", format="folder", captions_per_image=2)


@pytest.fixture(autouse=True)
def _two_records_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "RECORDS_PER_SHARD", 2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Stopped(Exception):
    """Stands for an interruption."""


def stop_after(records: int) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if done == records:
            raise Stopped

    return on_progress


def test_shards_hold_pictures_captions_and_labels(tmp_path: Path) -> None:
    out = render_corpus(tmp_path / "out", SMALL)
    assert sorted(contents(out)) == ["00000.tar", "00001.tar", "00002.tar", "manifest.json"]
    with tarfile.open(out / "00000.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members[:3]] == ["00000000.png", "00000000.txt", "00000000.json"]
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
    records = list_records(out)
    assert [record.key for record in records] == [f"{index:08d}" for index in range(5)]
    for index, record in enumerate(records):
        expected = make_record("heroes", 40 + index, 2)
        (tmp_path / "picture.png").write_bytes(record.read())
        assert np.array_equal(Image.open(tmp_path / "picture.png"), render_scene(expected.scene, 40 + index, 32))
        assert record.captions == expected.captions
        assert {**record.labels, "captions": list(record.captions)} == expected.labels()


@pytest.mark.parametrize("arguments", [SMALL, FOLDER], ids=["webdataset", "folder"])
def test_bytes_do_not_depend_on_the_number_of_workers(arguments: CorpusArguments, tmp_path: Path) -> None:
    alone = contents(render_corpus(tmp_path / "alone", arguments, workers=1))
    assert alone == contents(render_corpus(tmp_path / "together", arguments, workers=2))


@pytest.mark.parametrize("arguments", [SMALL, FOLDER], ids=["webdataset", "folder"])
def test_an_interrupted_corpus_is_finished_and_its_shards_are_kept(arguments: CorpusArguments, tmp_path: Path) -> None:
    whole = contents(render_corpus(tmp_path / "whole", arguments))
    out = tmp_path / "interrupted"
    with pytest.raises(Stopped):
        render_corpus(out, arguments, on_progress=stop_after(3))
    finished = {name for name in contents(out) if name.endswith(("00000.tar", "00000.jsonl"))}
    assert len(finished) == 1
    kept = out / finished.pop()
    before = kept.stat().st_mtime_ns, kept.stat().st_ino
    seen: list[int] = []

    def on_progress(done: int, total: int) -> None:
        seen.append(done)
        if kept.exists():
            assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == before

    render_corpus(out, arguments, on_progress=on_progress)
    assert seen == [2, 3, 4, 5]
    left = {name: data for name, data in contents(out).items() if not name.endswith(".partial")}
    assert left == whole
    assert contents(render_corpus(out, arguments)) == contents(out)


def test_a_dead_worker_is_an_error_and_the_corpus_can_be_finished(tmp_path: Path) -> None:
    def kill_workers(done: int, total: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()

    with pytest.raises(RuntimeFailure, match="a rendering process died"):
        render_corpus(tmp_path / "out", SMALL, workers=2, on_progress=kill_workers)
    left = contents(render_corpus(tmp_path / "out", SMALL))
    assert left == contents(render_corpus(tmp_path / "whole", SMALL))


def test_a_folder_has_a_caption_file_and_metadata(tmp_path: Path) -> None:
    out = render_corpus(tmp_path, FOLDER)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"{index:08d}.png" for index in range(5)]
    assert all(line["text"] == (out / line["file_name"]).with_suffix(".txt").read_text() for line in lines)
    assert lines[0]["seed"] == 40
    assert lines[0]["subjects"]
    assert [record.captions for record in list_records(out)] == [tuple(line["captions"]) for line in lines]
    assert not (out / ".parts").exists()


def test_held_out_scenes_of_a_folder_can_be_left_out(tmp_path: Path) -> None:
    arguments = dataclasses.replace(FOLDER, count=20, size_px=16)
    records = list_records(render_corpus(tmp_path, arguments))
    reserved = [record for record in records if record.labels["held_out"]]
    assert reserved
    assert len(list_records(tmp_path, held_out=False)) == 20 - len(reserved)


def test_held_out_scenes_are_included_excluded_or_alone(tmp_path: Path) -> None:
    folders = {
        choice: render_corpus(tmp_path / choice, CorpusArguments(8, 0, 16, "heroes", held_out=choice))
        for choice in ("include", "exclude", "only")
    }
    reserved = {choice: [bool(r.labels["held_out"]) for r in list_records(out)] for choice, out in folders.items()}
    assert reserved["exclude"] == [False] * 8
    assert reserved["only"] == [True] * 8
    seeds = {choice: [r.labels["seed"] for r in list_records(out)] for choice, out in folders.items()}
    assert seeds["include"] == list(range(8))
    assert seeds["exclude"] == sorted(seeds["exclude"])
    assert not set(seeds["exclude"]) & set(seeds["only"])


def test_several_things_are_included_left_out_or_alone() -> None:
    def is_several(arguments: CorpusArguments) -> list[bool]:
        scenes = [scene_of("heroes", seed) for seed in arguments.seeds()]
        return [len(scene.subjects) > 1 or scene.subjects[0].count > 1 for scene in scenes]

    assert is_several(CorpusArguments(50, several="exclude")) == [False] * 50
    assert is_several(CorpusArguments(50, several="only")) == [True] * 50
    assert set(is_several(CorpusArguments(50))) == {True, False}
    both = CorpusArguments(50, held_out="exclude", several="only")
    assert is_several(both) == [True] * 50
    assert not any(held_out_pairs(scene_of("heroes", seed)) for seed in both.seeds())


def test_large_single_things_are_included_left_out_or_alone() -> None:
    def is_large(arguments: CorpusArguments) -> list[bool]:
        scenes = [scene_of("heroes", seed) for seed in arguments.seeds()]
        return [scene.is_single and scene.size == "large" for scene in scenes]

    assert is_large(CorpusArguments(50, large="exclude")) == [False] * 50
    assert is_large(CorpusArguments(50, large="only")) == [True] * 50
    assert set(is_large(CorpusArguments(50))) == {True, False}


def test_single_things_aside_are_included_left_out_or_alone() -> None:
    def is_aside(arguments: CorpusArguments) -> list[bool]:
        scenes = [scene_of("heroes", seed) for seed in arguments.seeds()]
        return [scene.is_single and scene.position(0) in ("left", "right") for scene in scenes]

    assert is_aside(CorpusArguments(50, aside="exclude")) == [False] * 50
    assert is_aside(CorpusArguments(50, aside="only")) == [True] * 50
    assert set(is_aside(CorpusArguments(50))) == {True, False}
    for several, large, told in (("only", "include", "one thing aside"), ("only", "only", "one thing large")):
        with pytest.raises(InputError, match=f"no scene shows {told} and several things"):
            CorpusArguments(1, several=several, large=large, aside="only")


def test_any_colours_change_the_colours_alone(tmp_path: Path) -> None:
    usual, painted = ([scene_of("heroes", seed, colours) for seed in range(600)] for colours in ("usual", "any"))
    seen: dict[str, set[str]] = {}
    for before, after in zip(usual, painted, strict=True):
        plain = [dataclasses.replace(subject, colour=None) for subject in after.subjects]
        assert plain == [dataclasses.replace(subject, colour=None) for subject in before.subjects]
        assert dataclasses.replace(after, subjects=before.subjects) == before
        colours = [subject.colour for subject in after.subjects if subject.colour is not None]
        assert len(set(colours)) == len(colours)
        assert [subject.colour is None for subject in before.subjects] == [s.colour is None for s in after.subjects]
        for subject in after.subjects:
            seen.setdefault(subject.noun.name, set()).add(str(subject.colour))
    assert "purple" in {str(s.colour) for scene in usual for s in scene.subjects}
    assert {name for name, colours in seen.items() if "purple" in colours} > {"hot air balloon", "castle", "lighthouse"}
    arguments = CorpusArguments(12, 0, 32, "heroes", several="only", held_out="exclude", colours="any")
    records = list_records(render_corpus(tmp_path, arguments))
    assert [r.labels["subjects"] for r in records] == [
        scene_of("heroes", seed, "any").to_json()["subjects"] for seed in arguments.seeds()
    ]
    assert not any(record.labels["held_out"] for record in records)


def test_only_heroes_come_in_any_colour() -> None:
    with pytest.raises(InputError, match="no colours but their own"):
        CorpusArguments(1, vocabulary="full", colours="any")
    with pytest.raises(InputError, match="colours 'loud' is not one of usual, any"):
        CorpusArguments(1, colours="loud")  # pyright: ignore[reportArgumentType]


def test_any_settings_put_things_where_they_fit_and_beside_each_other(tmp_path: Path) -> None:
    usual, freed = ([scene_of("heroes", seed, settings=how) for seed in range(4000)] for how in ("usual", "any"))

    def places(scenes: list[SceneSpec]) -> set[tuple[str, str]]:
        return {(subject.noun.name, scene.setting) for scene in scenes for subject in scene.subjects}

    def pairs(scenes: list[SceneSpec]) -> set[tuple[str, frozenset[str]]]:
        return {
            (scene.setting, frozenset(subject.noun.name for subject in scene.subjects))
            for scene in scenes
            if len(scene.subjects) == 2
        }

    assert {("castle", "beach"), ("house", "island"), ("windmill", "sea"), ("palm tree", "meadow")} <= places(freed)
    assert not {("palm tree", "snow"), ("sailboat", "meadow"), ("sailboat", "island")} & places(freed)
    assert len(pairs(freed)) > 2 * len(pairs(usual))
    for scene in freed:
        standing = [s.noun for s in scene.subjects if s.noun.category not in ("water", "air")]
        if scene.setting in ("cliff", "island"):
            assert len(standing) < 2
            assert sum(subject.count for subject in scene.subjects) <= 2
        if len(scene.subjects) == 2:
            assert len({subject.noun.name for subject in scene.subjects}) == 2
        assert scene.setting != "desert" or scene.weather not in ("rain", "snow", "storm")
    arguments = CorpusArguments(12, 0, 32, "heroes", held_out="exclude", colours="any", settings="any")
    records = list_records(render_corpus(tmp_path, arguments))
    assert [r.labels["setting"] for r in records] == [
        scene_of("heroes", seed, "any", "any").setting for seed in arguments.seeds()
    ]
    assert not any(record.labels["held_out"] for record in records)


def test_only_heroes_are_put_in_any_setting() -> None:
    with pytest.raises(InputError, match="no settings but their own"):
        CorpusArguments(1, vocabulary="full", settings="any")
    with pytest.raises(InputError, match="no settings but their own"):
        scene_of("full", 1, settings="any")
    with pytest.raises(InputError, match="settings 'wild' is not one of usual, any"):
        CorpusArguments(1, settings="wild")  # pyright: ignore[reportArgumentType]
    places: dict[str, set[str]] = {}
    for scene in (scene_of("heroes20", seed, settings="any") for seed in range(6000)):
        for subject in scene.subjects:
            places.setdefault(subject.noun.name, set()).add(scene.setting)
    assert (places["igloo"], places["cactus"], places["autumn tree"]) == ({"snow"}, {"desert"}, {"autumn", "lake"})
    assert {"garden", "beach", "island"} <= places["pagoda"], "its own too"


def test_a_caption_says_where_what_swims_or_flies_is_drawn() -> None:
    """Wherever it may be alone there are phrases for it: what stands is "on top of a cliff", and a balloon over it."""
    freed = anywhere(HEROES_20)
    for noun, phrases in (("sailboat", wordings.AFLOAT_PHRASES), ("hot air balloon", wordings.ALOFT_PHRASES)):
        assert freed[noun].settings.keys() <= phrases.keys()
    balloon = freed["hot air balloon"]
    scene = SceneSpec("cliff", "day", (Subject(Noun("hot air balloon", balloon.category, balloon.drawing)),))
    texts = [caption(scene, np.random.default_rng(seed), typos=False) for seed in range(60)]
    said = [text for text in texts if "cliff" in text and ("over" in text or "above" in text)]
    assert len(said) > 20
    assert not [text for text in texts if "on a cliff" in text or "on top" in text]


def test_every_colour_is_drawn_as_itself() -> None:
    """A name that a drawing does not know would quietly be its usual colour."""
    for noun in ("castle", "house", "cottage", "lighthouse", "sailboat", "windmill", "hot air balloon"):
        pictures = {
            colour: render_scene(sheets.scene_of(noun, None, colour=colour), 5, 64).tobytes() for colour in ALL_COLOURS
        }
        assert len(set(pictures.values())) == len(ALL_COLOURS), noun


def test_another_corpus_is_refused_by_name_of_what_differs(tmp_path: Path) -> None:
    render_corpus(tmp_path, CorpusArguments(2, 0, 16, "heroes"))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"arguments\.seed 0 there, 1 wanted") as caught:
        render_corpus(tmp_path, CorpusArguments(2, 1, 16, "heroes"))
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_corpus_begun_before_an_argument_existed_is_finished(tmp_path: Path) -> None:
    render_corpus(tmp_path, SMALL)
    before, manifest = contents(tmp_path), tmp_path / render.MANIFEST
    written = json.loads(manifest.read_text(encoding="utf-8"))
    del written["arguments"]["large"]
    manifest.write_text(json.dumps(written), encoding="utf-8")
    render_corpus(tmp_path, SMALL)
    assert {**contents(tmp_path), manifest.name: before[manifest.name]} == before
    with pytest.raises(InputError, match=r"arguments\.large include there, only wanted"):
        render_corpus(tmp_path, dataclasses.replace(SMALL, large="only"))


def test_another_version_of_the_drawing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = CorpusArguments(2, 0, 16, "heroes")
    render_corpus(tmp_path, arguments)
    monkeypatch.setattr(render, "CORPUS_VERSION", render.CORPUS_VERSION + 1)
    with pytest.raises(InputError, match="corpus_version"):
        render_corpus(tmp_path, arguments)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="is not empty and holds no corpus"):
        render_corpus(tmp_path, SMALL)
    with pytest.raises(InputError, match="is a file"):
        render_corpus(tmp_path / "holiday.jpg", SMALL)
    assert list(contents(tmp_path)) == ["holiday.jpg"]


def test_the_full_vocabulary_says_that_it_needs_artwork(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no artwork in") as caught:
        render_corpus(
            tmp_path / "out", CorpusArguments(2, size_px=16, vocabulary="full"), artwork_folder=tmp_path / "nowhere"
        )
    assert caught.value.hint == "fetch it with: latentgen data fetch-assets"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count 0 is not between 1"),
        ({"count": 1, "size_px": 8}, "size 8 is not between 16"),
        ({"count": 1, "vocabulary": "animals"}, "vocabulary 'animals' is not one of full, heroes, heroes20"),
        ({"count": 1, "format": "zip"}, "format 'zip' is not one of webdataset, folder"),
        ({"count": 1, "held_out": "maybe"}, "held-out 'maybe'"),
        ({"count": 1, "several": "two"}, "several 'two' is not one of include, exclude, only"),
        ({"count": 1, "large": "giant"}, "large 'giant' is not one of include, exclude, only"),
        ({"count": 1, "several": "only", "large": "only"}, "no scene shows one thing large and several things"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CorpusArguments(**arguments)  # type: ignore[arg-type]


def test_command_renders_and_prints_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["data", "render", "--out", str(out), "--count", "3", "--seed", "40", "--size", "32"]
    assert main([*command, "--captions-per-image", "2"]) == 0, "the default vocabulary needs no artwork"
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert printed.err == ""
    assert (out / "00000.tar").read_bytes() == (render_corpus(tmp_path / "library", SMALL) / "00000.tar").read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--count", "2", "--vocabulary", "animals"], 2, "vocabulary 'animals' is not one of full, heroes, heroes20"),
        (
            ["--count", "2", "--vocabulary", "full", "--assets", "nowhere"],
            3,
            "no artwork in nowhere (fetch it with: latentgen data fetch-assets)",
        ),
        (["--count", "0"], 2, "--count"),
    ],
)
def test_command_fails_in_one_line(
    options: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "render", "--out", str(tmp_path / "out"), *options]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
