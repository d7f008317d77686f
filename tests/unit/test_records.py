"""Data sets as they are found on disk: both forms, and every way in which one is not whole."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from latentgen.data.records import fingerprint, list_records
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
    """Nothing but picture, .txt and .json is looked at, nothing is unpacked, links are not followed."""
    path = write_tar(tmp_path / "0.tar", [*sample("a"), ("a.pyd", b"\x80\x04."), ("a.cls", b"7"), ("README", b"")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("../b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
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
        (b'{"text": "a"}', "line 1 has no 'file_name'"),
        (b'{"file_name": "gone.png", "text": "a"}', "line 1: .*gone.png: No such file"),
        (b'{"file_name": "a.png", "text": " "}', "line 1: a caption is empty"),
        (b'{"file_name": "../a.png", "text": "a"}', "lies outside"),
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


def test_held_out_compositions_are_kept_apart(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*sample("a", held_out=True), *sample("b", held_out=False), *sample("c")])
    assert [record.key for record in list_records(tmp_path)] == ["a", "b", "c"]
    assert [record.key for record in list_records(tmp_path, held_out=True)] == ["a"]
    assert [record.key for record in list_records(tmp_path, held_out=False)] == ["b", "c"]


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
        ({"a.png": b"1"}, r"a.png has no caption .*write one to a.txt"),
        ({"a.png": b"1", "a.txt": b" \n"}, "a.txt is empty"),
        ({"a.png": b"1", "a.txt": "x".encode("utf-16")}, "a.txt is not UTF-8"),
        ({"a.png": b"1", "a.jpg": b"2", "a.txt": b"x"}, "a.jpg and a.png would share one caption"),
    ],
)
def test_folders_that_are_not_whole(files: dict[str, bytes], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        list_records(write_folder(tmp_path, files))
    assert error.match(says)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("a.png", b"1")], r"sample a has \['png'\] .*one picture and one .txt"),
        ([("a.txt", b"x")], r"sample a has \['txt'\]"),
        ([("a.png", b"1"), ("a.jpg", b"2"), ("a.txt", b"x")], r"sample a has \['jpg', 'png', 'txt'\]"),
        ([("a.png", b"1"), ("a.txt", b"x"), ("a.png", b"2")], "a.png occurs twice"),
        ([("a.png", b"1"), ("a.txt", b"\xff\xfe")], "sample a is not readable text"),
        ([("a.png", b"1"), ("a.txt", b"  ")], "a caption is empty"),
        ([*sample("a"), ("a.json", b"{")], "sample a is not readable text"),
        ([*sample("a"), ("a.json", b"[1]")], "holds no object"),
        ([*sample("a"), ("a.json", b"[" * 100_000)], "sample a is not readable text"),
        (sample("a", captions="one"), "not a list of strings"),
        (sample("a", captions=["one", 2]), "not a list of strings"),
        (sample("a", captions=["one", " "]), "a caption is empty"),
        ([], "holds no samples"),
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
        with pytest.raises(InputError, match="is damaged"):
            list_records(tmp_path)
    (tmp_path / "0.tar").write_bytes(whole[:end])
    assert len(list_records(tmp_path)) == 2


def test_a_tar_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="is damaged"):
        list_records(tmp_path)
    (tmp_path / "0.tar").unlink()
    (tmp_path / "0.tar").symlink_to(tmp_path / "0.tar")
    with pytest.raises(InputError, match="is damaged"):
        list_records(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no data folder at"):
        list_records(tmp_path / "missing")
