"""Data sets as they are found on disk: both forms, and every way in which one is not whole."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from latentgen.data.records import fingerprint, list_records, pictures_fingerprint
from latentgen.errors import InputError, ModelNotFoundError

Members = list[tuple[str, bytes]]


def write_tar(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, **labels: object) -> Members:
    parts: Members = [(f"{key}.png", b"picture of " + key.encode()), (f"{key}.txt", f" a {key}\n".encode())]
    return [*parts, (f"{key}.json", json.dumps(labels).encode())] if labels else parts


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


# What is read


def test_shards_in_order_with_captions_and_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "00001.tar", sample("c"))
    write_tar(tmp_path / "00000.tar", [*sample("a", captions=["one", "two"], noun="fox"), *sample("b", seed=3)])
    records = list_records(tmp_path)
    assert [record.key for record in records] == ["a", "b", "c"]
    assert [record.captions for record in records] == [("one", "two"), ("a b",), ("a c",)]
    assert [dict(record.labels) for record in records] == [{"noun": "fox"}, {"seed": 3}, {}]
    assert [record.read() for record in records] == [b"picture of a", b"picture of b", b"picture of c"]


def test_members_that_are_no_part_of_a_sample_are_left_alone(tmp_path: Path) -> None:
    """Nothing but picture, .txt and .json is looked at, and nothing is unpacked."""
    path = write_tar(tmp_path / "0.tar", [*sample("a"), ("a.pyd", b"\x80\x04."), ("a.cls", b"7"), ("README", b"")])
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert [record.key for record in list_records(tmp_path)] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_unsorted_and_upper_case_members_are_one_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.txt", b"x"), ("b.JPG", b"1"), ("a.PNG", b"2"), ("b.txt", b"\xef\xbb\xbfy")])
    assert [(record.key, record.captions) for record in list_records(tmp_path)] == [("a", ("x",)), ("b", ("y",))]


def test_folder_of_pictures(tmp_path: Path) -> None:
    write_folder(
        tmp_path,
        {
            "b.JPG": b"22",
            "b.txt": b"\xef\xbb\xbfa b\n",
            "a.webp": b"1",
            "a.caption": "ein Häuschen".encode(),
            "notes.md": b"",
        },
    )
    (tmp_path / "album.png").mkdir()
    records = list_records(tmp_path)
    assert [(record.key, record.captions) for record in records] == [("a", ("ein Häuschen",)), ("b", ("a b",))]
    assert [record.read() for record in records] == [b"1", b"22"]


def test_folder_with_metadata(tmp_path: Path) -> None:
    """Hugging Face's ImageFolder form; `captions` and labels as the corpus writes them."""
    lines = [
        {"file_name": "a.png", "text": "one"},
        {"file_name": "b.png", "text": "b", "captions": ["b", "c"], "seed": 3},
    ]
    write_folder(
        tmp_path, {"a.png": b"x", "b.png": b"yy", "metadata.jsonl": "\n".join(map(json.dumps, lines)).encode()}
    )
    records = list_records(tmp_path)
    assert [(record.key, record.captions, dict(record.labels)) for record in records] == [
        ("a", ("one",), {}),
        ("b", ("b", "c"), {"seed": 3}),
    ]
    assert [record.read() for record in records] == [b"x", b"yy"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "a"}', "line 1: metadata cannot be read: it has no file_name"),
        (b'{"file_name": "gone.png", "text": "a"}', "gone.png: cannot be read: No such file"),
        (b'{"file_name": "a.png", "text": " "}', "a.png: empty caption"),
        (b'{"file_name": "a.png", "captions": []}', "a.png: empty caption"),
        (b'{"file_name": "a.png", "captions": "x"}', "a.png: .*not a list of strings"),
        (b'{"file_name": "a.png", "text": "\\ud800"}', "a.png: caption is not UTF-8 text: .*surrogate"),
        (b'{"file_name": "../a.png", "text": "a"}', "leads out of the data folder"),
        (b'{"file_name": "a.png", "caption": "a"}', "neither text nor captions beside the name: caption"),
        (b'{"file_name": "a\\u0000.png", "text": "a"}', "cannot be read"),
        (b'{"file_name": "a.gif", "text": "a"}', "a.gif: cannot be read: No such file"),
        (b'{"file_name": "a.png", "text": "a"}\n' * 2, "a.png: occurs twice: again in line 2"),
        (b'{"file_name": 3, "text": "a"}', "line 1"),
        (b"[1]", "line 1"),
        (b"{", "line 1"),
        (b"\xff", "cannot be read"),
    ],
)
def test_metadata_that_is_not_whole(line: bytes, says: str, tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": b"x", "metadata.jsonl": line})
    with pytest.raises(InputError, match=says):
        list_records(tmp_path)


def test_a_snapshot_of_the_hugging_face_cache_is_a_data_folder(tmp_path: Path) -> None:
    """It holds links into a folder beside it; a link to anywhere else leads out there too."""
    store = tmp_path / "datasets--someone--pictures"
    snapshot, blobs = store / "snapshots" / "0a1b", store / "blobs"
    blobs.mkdir(parents=True)
    write_folder(blobs, {"11": b"x", "22": b'{"file_name": "a.png", "text": "one"}'})
    snapshot.mkdir(parents=True)
    for name, blob in (("a.png", "11"), ("metadata.jsonl", "22")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    (record,) = list_records(snapshot)
    assert (record.read(), record.captions) == (b"x", ("one",))
    (tmp_path / "elsewhere").mkdir()
    write_folder(tmp_path / "elsewhere", {"b.png": b"y", "b.txt": b"two"})
    (snapshot / "metadata.jsonl").unlink()
    for name in ("b.png", "b.txt"):
        (snapshot / name).symlink_to(tmp_path / "elsewhere" / name)
    (snapshot / "a.txt").write_text("one")
    with pytest.raises(InputError, match=r"b\.png: leads out of the data folder: a link: copy the file"):
        list_records(snapshot)


def test_captions_may_end_in_capitals(tmp_path: Path) -> None:
    write_folder(tmp_path, {"A.PNG": b"x", "A.TXT": b"one"})
    (record,) = list_records(tmp_path)
    assert record.captions == ("one",)


def test_held_out_compositions_are_kept_apart(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*sample("a", held_out=True), *sample("b", held_out=False), *sample("c")])
    assert [record.key for record in list_records(tmp_path)] == ["a", "b", "c"]
    assert [record.key for record in list_records(tmp_path, held_out=True)] == ["a"]
    assert [record.key for record in list_records(tmp_path, held_out=False)] == ["b", "c"]


def test_pictures_have_a_fingerprint_of_their_own(tmp_path: Path) -> None:
    """Decoded and encoded pictures are kept by it: a corrected caption must not cost them."""
    files = {"a.png": b"1", "a.txt": b"teh cat"}
    first = list_records(write_folder(tmp_path, files))
    before, pictures = fingerprint(first), pictures_fingerprint(first)
    (tmp_path / "a.txt").write_text("the cat")
    after = list_records(tmp_path)
    assert fingerprint(after) != before
    assert pictures_fingerprint(after) == pictures
    write_folder(tmp_path, {"b.png": b"2", "b.txt": b"another"})
    assert pictures_fingerprint(list_records(tmp_path)) != pictures


def test_fingerprint_tells_what_changed_and_not_when(tmp_path: Path) -> None:
    files = {"a.png": b"1", "a.txt": b"x", "b.png": b"2", "b.txt": b"y"}
    first = fingerprint(list_records(write_folder(tmp_path, files)))
    os.utime(tmp_path / "a.png", (0, 0))
    assert fingerprint(list_records(tmp_path)) == first
    for name, data in (("a.txt", b"z"), ("b.png", b"33")):
        write_folder(tmp_path, {name: data})
        assert fingerprint(list_records(tmp_path)) != first
        write_folder(tmp_path, files)
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert fingerprint(list_records(tmp_path)) != first


# What is refused


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no pictures with captions"),
        ({"a.txt": b"x"}, "holds no pictures with captions"),
        ({"a.png": b"1"}, "a.png: no caption: write one to a.txt"),
        ({"a.png": b"1", "a.txt": b" \n"}, "a.png: empty caption"),
        ({"a.png": b"1", "a.txt": "x".encode("utf-16")}, "a.png: caption is not UTF-8 text: byte 0 is 0xff"),
        ({"a.png": b"1", "a.txt": b"x", "a.caption": b"y"}, "a.png: occurs twice: a.txt and a.caption"),
        ({"a.png": b"1", "a.jpg": b"2", "a.txt": b"x"}, "2 of 2 .*a.jpg: shares its caption .*: a.png; a.png: shares"),
    ],
)
def test_folders_that_are_not_whole(files: dict[str, bytes], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        list_records(write_folder(tmp_path, files))
    assert error.match(says)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("a.png", b"1")], "0.tar/a: not one picture with one .txt: it has png"),
        ([("a.txt", b"x")], "0.tar/a: .*it has txt"),
        ([("a.png", b"1"), ("a.jpg", b"2"), ("a.txt", b"x")], "0.tar/a: .*it has jpg, png, txt"),
        ([("a.gif", b"1"), ("a.txt", b"x")], "0.tar/a: no PNG, JPEG or WebP picture: a.gif"),
        ([("a.png", b"1"), ("a.txt", b"x"), ("a.png", b"2")], "0.tar/a: occurs twice: a.png"),
        ([("a.png", b"1"), ("a.txt", b"\xff\xfe")], "0.tar/a: caption is not UTF-8 text"),
        ([("a.png", b"1"), ("a.txt", b"x" * 2**21)], "0.tar/a: too large: a.txt holds 2097152 bytes"),
        ([("a.png", b"1"), ("a.txt", b"  ")], "0.tar/a: empty caption"),
        ([*sample("a"), ("a.json", b"{")], "0.tar/a: metadata cannot be read"),
        ([*sample("a"), ("a.json", b"[1]")], "it is no JSON object"),
        ([*sample("a"), ("a.json", b"[" * 100_000)], "0.tar/a: metadata cannot be read"),
        (sample("a", captions="one"), "not a list of strings"),
        (sample("a", captions=["one", 2]), "not a list of strings"),
        (sample("a", captions=["one", " "]), "empty caption"),
        ([], "0.tar: damaged shard: it holds no samples"),
    ],
)
def test_shards_that_are_not_whole(members: Members, says: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(InputError) as error:
        list_records(tmp_path)
    assert error.match(says)


def test_a_shard_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    """At every block, up to the two that end the archive: tarfile alone takes most cuts for the end."""
    whole = write_tar(tmp_path / "whole", [*sample("a"), *sample("b")]).read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512 + 1024
    for length in [*range(0, end, 512), *range(511, end, 512)]:
        (tmp_path / "0.tar").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"0\.tar: damaged shard"):
            list_records(tmp_path)
    (tmp_path / "0.tar").write_bytes(whole[:end])
    assert len(list_records(tmp_path)) == 2


def test_a_tar_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"0\.tar: damaged shard"):
        list_records(tmp_path)
    (tmp_path / "0.tar").unlink()
    (tmp_path / "0.tar").symlink_to(tmp_path / "0.tar")
    with pytest.raises(InputError, match=r"0\.tar: damaged shard"):
        list_records(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no data folder at"):
        list_records(tmp_path / "missing")
