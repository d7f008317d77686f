"""Thirty-six kinds of bad or unusual training data, each with its stated outcome: one table.

Every row is a folder beside one sound picture. It says what is found, what is used and why the rest is not; a row whose
set as a whole is refused says with which words. `looked_at` checks what holds for all of them: found = used + skipped,
exactly; strict and lenient use agree; nothing is written, no other program is started.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentgen.cli.boundary import one_line
from latentgen.data.decode import decode, inspect
from latentgen.data.record import Fault, Record, Skipped
from latentgen.data.records import list_found
from latentgen.data.scan import Scan, scan
from latentgen.errors import InputError, LatentgenError, ModelNotFoundError
from tests.cli.conftest import snapshot

SIDE_PX = 16
ROOT = Path(__file__).parents[2]


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int = SIDE_PX, height: int = SIDE_PX, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


GOOD = encoded(noise(seed=99))
PNG, JPEG = encoded(noise(64, 64)), encoded(noise(64, 64), "JPEG", quality=90)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, *more: bytes) -> bytes:
    """A PNG of the stated size whose pixels are a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + data + chunk(b"IEND", b"")


BOMBS = [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**23))) for _ in range(12)]
FRAMES = [noise(seed=k) for k in range(3)]
WEBP_ANIMATION = encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:])
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(x) show\n%%EOF\n"

Files = dict[str, bytes]
Make = Callable[[Path], None]


@dataclass(frozen=True)
class Row:
    number: str
    """Of section (c) of the list."""
    name: str
    files: Files | Make
    faults: tuple[Fault, ...] = ()
    used: int = 1
    """Pictures used with --skip-bad: the sound one, and those of the row that are sound."""
    identical: int = 0
    refused: str | None = None
    """The words with which the whole set is refused, with --skip-bad too."""


def picture_row(number: str, name: str, data: bytes, fault: Fault | None, suffix: str = "png") -> Row:
    """One picture `a` with a sound caption."""
    files = {f"a.{suffix}": data, "a.txt": b"a thing"}
    return Row(number, name, files, () if fault is None else (fault,), 2 if fault is None else 1)


def caption_row(number: str, name: str, caption: bytes | None, fault: Fault | None) -> Row:
    files = {"a.png": PNG} | ({} if caption is None else {"a.txt": caption})
    return Row(number, name, files, () if fault is None else (fault,), 2 if fault is None else 1)


def tar_row(number: str, name: str, members: list[tuple[str, bytes]], *faults: Fault, used: int = 1) -> Row:
    """Beside `good.tar` with one sample, a shard `a.tar` with these members."""
    return Row(number, name, lambda folder: write_shards(folder, members), faults, used)


def write_shards(folder: Path, members: list[tuple[str, bytes]]) -> None:
    write_tar(folder / "good.tar", [("good.png", GOOD), ("good.txt", b"sound")])
    write_tar(folder / "a.tar", members)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def special_members(*kinds: bytes) -> Make:
    """A shard with a sample `a`, and one of each kind of member that is no regular file."""

    def make(folder: Path) -> None:
        write_shards(folder, [("a.png", PNG), ("a.txt", b"x")])
        with tarfile.open(folder / "a.tar", "a") as tar:
            for k, kind in enumerate(kinds):
                info = tarfile.TarInfo(f"{k}.png")
                info.type, info.linkname = kind, "/etc/passwd"
                tar.addfile(info)
                tar.addfile(tarfile.TarInfo(f"{k}.txt"))

    return make


def lying_size(size: int) -> Make:
    """A shard whose first header states another size than its picture has."""

    def make(folder: Path) -> None:
        write_shards(folder, [("a.png", PNG), ("a.txt", b"x")])
        data = bytearray((folder / "a.tar").read_bytes())
        data[124:136] = b"%011o\0" % size if size >= 0 else b"\xff" + size.to_bytes(11, "big", signed=True)
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        (folder / "a.tar").write_bytes(data)

    return make


def links(folder: Path) -> None:
    """A loop, a link to nothing, one out of the folder, and one to a picture inside, which is as good as a picture."""
    outside = folder.parent / "outside.png"
    outside.write_bytes(PNG)
    for name, target in (("loop", "loop.png"), ("none", "gone.png"), ("out", str(outside)), ("same", "good.png")):
        (folder / f"{name}.png").symlink_to(target)
        (folder / f"{name}.txt").write_text("a link")


def png_with_exif(exif: bytes) -> bytes:
    """Which Pillow would refuse to turn."""
    at = PNG.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    return PNG[:at] + chunk + PNG[at:]


def odd_names(folder: Path) -> None:
    """A newline, an escape sequence, and a byte that is no UTF-8: all usable."""
    for k, name in enumerate((b"a\nb", b"\x1b[31mred", b"\xff\xfe")):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".png")).write_bytes(encoded(noise(seed=k)))
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".txt")).write_bytes(b"odd")


def no_files(folder: Path) -> None:
    (folder / "a.png").mkdir()
    os.mkfifo(folder / "b.png")
    (folder / "b.txt").write_bytes(b"x")


def only(files: Files) -> Make:
    """These files and not the sound picture."""

    def make(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name, data in files.items():
            (folder / name).write_bytes(data)

    return make


SAMPLE = [("a.png", PNG), ("a.txt", b"a thing")]
F = Fault
ROWS = [
    picture_row("1", "0 bytes", b"", F.FOREIGN),
    picture_row("2", "HTML", b"<!DOCTYPE html><html></html>", F.FOREIGN, "jpg"),
    picture_row("3", "truncated JPEG", JPEG[: len(JPEG) // 2], F.DAMAGED, "jpg"),
    picture_row("3", "JPEG cut in its header", JPEG[:100], F.DAMAGED, "jpg"),
    picture_row("3", "truncated PNG", PNG[: len(PNG) // 2], F.DAMAGED),
    picture_row("3", "truncated WebP", encoded(noise(64, 64), "WEBP")[:-200], F.DAMAGED, "webp"),
    picture_row("4", "EXIF that is none", png_with_exif(b"\xff" * 40), None),
    picture_row("4", "CRC error", PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], F.DAMAGED),
    picture_row("5", "EPS renamed", EPS, F.FOREIGN, "jpg"),
    picture_row("6", "60000 x 60000", png_header(60000, 60000), F.TOO_LARGE),
    picture_row("7", "12000 x 12000", png_header(12000, 12000), F.TOO_LARGE),
    picture_row("8", "text bombs", png_header(16, 16, *BOMBS), F.DAMAGED),
    picture_row("9", "1 x 60000", encoded(Image.new("1", (1, 60000))), F.TOO_SMALL),
    picture_row("9", "16 x 600", encoded(Image.new("L", (16, 600))), F.TOO_LONG),
    picture_row("10", "1 x 1", encoded(Image.new("RGB", (1, 1))), F.TOO_SMALL),
    picture_row("12", "float TIFF", encoded(Image.new("F", (16, 16), 0.5), "TIFF"), F.FOREIGN),
    picture_row("12", "float TIFF by name", encoded(Image.new("F", (16, 16), 0.5), "TIFF"), F.FOREIGN, "tif"),
    picture_row("17", "animated GIF", encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), F.FOREIGN),
    picture_row("17", "GIF by name", encoded(FRAMES[0], "GIF"), F.FOREIGN, "gif"),
    picture_row("17", "animated WebP", WEBP_ANIMATION, F.ANIMATED, "webp"),
    caption_row("19", "no caption", None, F.NO_CAPTION),
    caption_row("20", "empty caption", b" \n\t", F.EMPTY_CAPTION),
    caption_row("21", "Latin-1", "ein Häuschen".encode("latin-1"), F.BAD_TEXT),
    caption_row("21", "UTF-16 with mark", "a house".encode("utf-16"), F.BAD_TEXT),
    caption_row("21", "UTF-16 without mark", "a house".encode("utf-16-le"), F.BAD_TEXT),
    caption_row("21", "UTF-8 with mark", b"\xef\xbb\xbfa house", None),
    Row("22", "a.jpg and a.png", {"a.png": PNG, "a.jpg": JPEG, "a.txt": b"x"}, (F.SHARED_NAME,) * 2),
    Row("23", "case only", {"a.png": PNG, "A.PNG": PNG, "a.txt": b"x", "A.txt": b"y"}, (F.CASE_ONLY,) * 2),
    Row("24", "identical", {"a.png": GOOD, "b.png": PNG, "a.txt": b"x", "b.txt": b"y"}, used=3, identical=1),
    Row("25", "nothing", only({}), refused="holds no pictures with captions"),
    Row("25", "nothing usable", only({"a.png": b"", "a.txt": b"x"}), (F.FOREIGN,), used=0, refused="none of 1"),
    Row("26", "captions only", only({"a.txt": b"x", "b.txt": b"y"}), refused="holds no pictures with captions"),
    Row("28", "links", links, (F.UNREADABLE, F.UNREADABLE, F.OUTSIDE), used=2, identical=1),
    Row("28", "no files", no_files, (F.NOT_A_FILE,)),
    Row("29", "odd names", odd_names, used=4),
    tar_row("32", "unsorted", [("a.txt", b"x"), ("b.png", encoded(noise())), ("a.png", PNG), ("b.txt", b"y")], used=3),
    tar_row("33", "one member twice", [*SAMPLE, ("a.png", GOOD)], F.NAMED_TWICE),
    tar_row("33", "two pictures", [*SAMPLE, ("a.jpg", JPEG)], F.INCOMPLETE),
    tar_row("33", "no caption", [*SAMPLE, ("b.png", PNG)], F.INCOMPLETE, used=2),
    tar_row("34", "empty shard", [], F.DAMAGED_SHARD),
    Row("34", "0-byte shard", lambda f: (write_shards(f, SAMPLE), (f / "a.tar").write_bytes(b""), None)[-1],
        (F.DAMAGED_SHARD,)),
    tar_row("35", "pickles", [*SAMPLE, ("a.pyd", b"\x80\x04."), ("a.pkl", b"c"), ("a.pth", b"c"), ("x.pkl", b"c")],
            used=2),
    tar_row("36", "up and out", [*SAMPLE, ("../b.png", PNG), ("../b.txt", b"x")], F.OUTSIDE, used=2),
    tar_row("36", "absolute", [*SAMPLE, ("/tmp/b.png", PNG), ("/tmp/b.txt", b"x")], F.OUTSIDE, used=2),
    Row("36", "links and devices",
        special_members(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
        (F.NOT_A_FILE,) * 5, used=2),
    Row("36", "a size beyond the end", lying_size(10**9), (F.DAMAGED_SHARD,)),
    Row("36", "too small a size", lying_size(100), (F.DAMAGED_SHARD,)),
    Row("36", "a negative size", lying_size(-512), (F.DAMAGED_SHARD,)),
]  # fmt: skip


def lay_out(row: Row, folder: Path) -> Path:
    folder.mkdir()
    if not callable(row.files):
        for name, data in {"good.png": GOOD, "good.txt": b"sound", **row.files}.items():
            (folder / name).write_bytes(data)
        return folder
    (folder / "good.png").write_bytes(GOOD)
    (folder / "good.txt").write_bytes(b"sound")
    row.files(folder)
    return folder


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ghostscript, above all, is never started."""

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", fail)
    monkeypatch.setattr(os, "system", fail)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest sets aside the filter that is ours
@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}-{row.name}")
def test_outcome(row: Row, tmp_path: Path) -> None:
    folder = lay_out(row, tmp_path / "data")
    before = sorted(path.name for path in folder.iterdir())
    if row.refused is not None and not row.faults:
        with pytest.raises(InputError, match=row.refused):
            scan(folder)
        return
    scanned = scan(folder)
    assert sorted(each.fault for each in scanned.skipped) == sorted(row.faults)
    assert (len(scanned.used), scanned.identical) == (row.used, row.identical)
    assert scanned.found == len(scanned.used) + sum(scanned.reasons.values())
    strict, lenient = refusal(scanned, skip_bad=False), refusal(scanned, skip_bad=True)
    assert (strict is not None) == bool(row.faults)
    assert strict is None or strict.exit_code == 2
    for each in scanned.skipped[:2]:
        assert each.reason in str(strict)
    assert (lenient is None) if row.refused is None else (lenient is not None and row.refused in str(lenient))
    for record in scanned.used:
        assert decode(record, (SIDE_PX, SIDE_PX)).shape == (SIDE_PX, SIDE_PX, 3), "what is used can be trained on"
    assert sorted(path.name for path in folder.iterdir()) == before


def refusal(scanned: Scan, *, skip_bad: bool) -> LatentgenError | None:
    """The error of strict or lenient use, as one printable line."""
    try:
        scanned.require(skip_bad=skip_bad)
    except InputError as error:
        line = one_line(error.message, error.hint, limit=None)
        assert line.isprintable()
        return error
    return None


def test_every_row_of_the_list_is_here() -> None:
    """Those that are not in the table have a test of their own below, or in test_pixels.py (11, 13-16, 18)."""
    own = {"11", "13", "14", "15", "16", "18", "27", "30", "31"}
    assert {row.number for row in ROWS} | own == {str(n) for n in range(1, 37)}


def test_27_what_may_not_be_read() -> None:
    """Root reads everything, so where the tests run as root another user looks, in a folder that is open to it."""
    code = """
import json, os, sys
from pathlib import Path
from latentgen.data.scan import scan
from latentgen.errors import LatentgenError
place = Path(sys.argv[1])
assert len(scan(place / "sound").used) == 1  # and all is imported that the other user may not be able to
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
said = []
for name in ("file", "caption", "folder"):
    try:
        scan(place / name).require(skip_bad=False)
    except LatentgenError as error:
        said.append((error.exit_code, str(error)))
print(json.dumps(said))
"""
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in ("file", "caption", "folder", "sound")}
        Path(place).chmod(0o755)
        for name, folder in folders.items():
            lay_out(Row("27", name, {"a.png": PNG, "a.txt": b"x"} if name != "sound" else {}), folder)
            folder.chmod(0o755)
        (folders["file"] / "a.png").chmod(0)
        (folders["caption"] / "a.txt").chmod(0)
        folders["folder"].chmod(0)
        done = subprocess.run(
            [sys.executable, "-c", code, place], cwd=ROOT, capture_output=True, text=True, check=False
        )
        folders["folder"].chmod(0o755)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [code for code, _ in said] == [2, 2, 2]
    assert "1 of 2 pictures" in said[0][1]
    assert "a.png: cannot be read: Permission denied" in said[0][1]
    assert "a.png: cannot be read: a.txt: Permission denied" in said[1][1]
    assert "folder cannot be read: Permission denied" in said[2][1]


def test_30_a_file_that_vanishes_between_list_and_look(tmp_path: Path) -> None:
    folder = lay_out(Row("30", "", {"a.png": PNG, "a.txt": b"x"}), tmp_path / "data")
    listed = [each for each in list_found(folder) if isinstance(each, Record)]
    (folder / "a.png").unlink()
    looked = [inspect(record) for record in listed]
    assert looked[0] == Skipped("a.png", Fault.UNREADABLE, "No such file or directory")
    assert isinstance(looked[1], Record)


def test_31_a_tar_cut_at_every_block(tmp_path: Path) -> None:
    """Never fewer samples without a word: not one cut of a shard with three samples passes."""
    members = [(f"{k}.{kind}", data) for k in range(3) for kind, data in (("png", PNG), ("txt", b"x"))]
    write_tar(tmp_path / "0.tar", members)
    whole = (tmp_path / "0.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512 + 1024
    assert end // 512 > 60
    for length in range(0, end, 512):
        (tmp_path / "0.tar").write_bytes(whole[:length])
        (fault,) = list_found(tmp_path)
        assert isinstance(fault, Skipped), length
        assert fault.fault is Fault.DAMAGED_SHARD
    (tmp_path / "0.tar").write_bytes(whole[:end])
    assert len(list_found(tmp_path)) == 3


def test_35_a_command_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no data folder at pipe:touch ran"):
        scan(Path("pipe:touch ran"))
    assert snapshot(tmp_path) == {}


def test_a_jpeg_cut_anywhere_is_noticed_by_the_quick_look(tmp_path: Path) -> None:
    """The look decodes at an eighth of the size; it must see what a whole decode sees."""
    for quality, progressive in ((90, False), (60, True)):
        data = encoded(noise(64, 48), "JPEG", quality=quality, progressive=progressive)
        for length in range(len(data) // 4, len(data) - 8, 97):
            path = tmp_path / "a.jpg"
            path.write_bytes(data[:length])
            looked = inspect(Record("a", ("x",), path))
            try:
                decode(Record("a", ("x",), path), (SIDE_PX, SIDE_PX))
                whole = True
            except InputError:
                whole = False
            assert isinstance(looked, Record) == whole, length


def test_random_damage_never_raises_anything_else(tmp_path: Path) -> None:
    """Flipped bytes in all three formats: used or skipped, whatever Pillow raises."""
    generator = np.random.default_rng(0)
    path = tmp_path / "a.png"
    outcomes = set()
    for data in (PNG[:600] + PNG[-200:], PNG, JPEG, encoded(noise(64, 64), "WEBP")):
        for _ in range(60):
            damaged = bytearray(data)
            for position in generator.integers(0, min(len(data), 400), 4):
                damaged[position] = generator.integers(0, 256)
            path.write_bytes(damaged)
            outcomes.add(type(inspect(Record("a", ("x",), path))))
    assert outcomes == {Record, Skipped}
