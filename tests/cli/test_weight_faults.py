"""Thirty ways in which weights are wrong, each through the model folder and through the single file.

The outcome is one: exit code 3, one line that names the file and the cause, no traceback, nothing written, nothing run.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import struct
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from latentgen.checkpoints.conversion import convert
from latentgen.checkpoints.folder import load_model, load_unet
from latentgen.checkpoints.io import read_tensors, write_tensors
from latentgen.cli.boundary import one_line
from latentgen.errors import LatentgenError, ModelLoadError
from tests.cli.conftest import Cli, snapshot

UNET_WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Model:
    """A model that opens, and the weights file of it that a test damages."""

    path: Path
    weights: Path


@pytest.fixture(scope="module")
def single_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    convert(tiny_model, path)
    return path


@pytest.fixture(params=["folder", "single file"])
def model(request: pytest.FixtureRequest, tiny_model: Path, single_file: Path, tmp_path: Path) -> Model:
    if request.param == "folder":
        shutil.copytree(tiny_model, tmp_path / "model")
        return Model(tmp_path / "model", tmp_path / "model" / UNET_WEIGHTS)
    shutil.copy(single_file, tmp_path / "model.safetensors")
    return Model(tmp_path / "model.safetensors", tmp_path / "model.safetensors")


def refusal(model: Model) -> str:
    """What loading says, after checking that it is one line."""
    before = snapshot(model.path.parent)
    with pytest.raises(LatentgenError) as caught:
        load_model(model.path)
    assert caught.value.exit_code == 3
    assert snapshot(model.path.parent) == before
    line = one_line(caught.value.message, caught.value.hint)
    assert line.isprintable()
    assert len(line) <= 300
    assert str(model.path.parent) in caught.value.message
    return one_line(caught.value.message, caught.value.hint, limit=None)


# Rows 1 to 17: the file


def split(path: Path) -> tuple[bytes, bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def with_header(path: Path, header: object, data: bytes | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (split(path)[1] if data is None else data))


def edit_entry(**changes: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        header = json.loads(split(path)[0])
        first = min((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
        header[first] |= changes
        with_header(path, header)

    return damage


def shift_offsets(begin: int, end: int) -> Callable[[Path], None]:
    """Of the second tensor in the file."""

    def damage(path: Path) -> None:
        header = json.loads(split(path)[0])
        names = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
        old = header[names[1]]["data_offsets"]
        header[names[1]]["data_offsets"] = [old[0] + begin, old[1] + end]
        with_header(path, header)

    return damage


def rename_first(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        header = json.loads(split(path)[0])
        first = min((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
        header[name] = header.pop(first)
        with_header(path, header)

    return damage


def in_header(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        text, data = split(path)
        assert old in text
        with_header(path, text.replace(old, new, 1), data)

    return damage


def header_length(length: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def twenty_thousand(path: Path) -> None:
    header = json.loads(split(path)[0])
    header |= {f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_001)}
    with_header(path, header)


def append(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes() + data)


def deep(path: Path) -> None:
    with_header(path, b'{"a":' + b"[" * 100_000)


FILE_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "3 header length 2^63": (header_length(2**63), "header length does not fit"),
    "3 header length past the end": (header_length(10**7), "header length does not fit"),
    "3 header length 0": (header_length(0), "header length does not fit"),
    "4 more than 20000 tensors": (twenty_thousand, "more than 20000 tensors"),
    "5 overlap": (shift_offsets(-4, -4), "overlaps the tensor before it"),
    "6 hole": (shift_offsets(4, 4), "leaves a gap before it"),
    "7 trailing bytes": (append(b"\0\0\0\0"), "has bytes after the last tensor"),
    "8 begin after end": (edit_entry(data_offsets=[4, 0]), "holds -4 bytes"),
    "9 size is not shape times dtype": (edit_entry(shape=[1, 1]), "but F32 [1, 1] needs 4"),
    "10 shape overflows": (edit_entry(shape=[2**31, 2**31, 2**31]), "impossibly large"),
    "11 negative": (edit_entry(shape=[-4]), "number -4"),
    "12 minus zero": (in_header(b'"shape":[', b'"shape":[-0,'), "number -0"),
    "13 fraction": (in_header(b'"shape":[', b'"shape":[1.0,'), "number 1.0"),
    "14 name twice": (in_header(b"{", b'{"a":1,"a":2,'), "'a' appears twice"),
    "14 field twice": (in_header(b'"shape":', b'"shape":[],"shape":'), "'shape' appears twice"),
    "15 leading space": (in_header(b"{", b" {"), "does not begin with {"),
    "16 deep JSON": (deep, "malformed header"),
    "17 ESC in a name": (rename_first("a\x1b[2J"), "not plain text: 'a\\x1b[2J'"),
    "17 NUL in a name": (rename_first("a\0b"), "not plain text: 'a\\x00b'"),
    "17 non-ASCII in a name": (rename_first("é"), "not plain text: '\\xe9'"),
    "22 fp8": (in_header(b'"F32"', b'"F8_E4M3"'), "has the element type 'F8_E4M3', which is not supported"),
    "43 LFS pointer": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "44 web page": (lambda path: path.write_bytes(b"<html>Sign in"), "is a web page"),
    "45 empty": (lambda path: path.write_bytes(b""), "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_file_that_is_not_sound(fault: str, model: Model) -> None:
    damage, told = FILE_FAULTS[fault]
    damage(model.weights)
    assert told in refusal(model)


def test_1_truncated_anywhere(model: Model) -> None:
    """At every byte of the first kilobyte, and in even steps through the rest."""
    content = model.weights.read_bytes()
    for size in [*range(1024), *range(1024, len(content), len(content) // 100), len(content) - 1]:
        with model.weights.open("r+b") as file:
            file.truncate(0)
            file.write(content[:size])
        with pytest.raises(ModelLoadError):
            load_unet(model.path)


def test_2_a_flipped_bit_of_the_data_is_told_by_the_fingerprint(model: Model) -> None:
    before = load_model(model.path).fingerprint()
    content = bytearray(model.weights.read_bytes())
    content[-1000] ^= 1
    model.weights.write_bytes(content)
    assert load_model(model.path).fingerprint() != before


def test_4_a_header_of_17_megabytes_is_refused_unread(model: Model) -> None:
    with model.weights.open("wb") as file:
        file.write(struct.pack("<Q", 17 * 2**20))
        file.truncate(18 * 2**20)
    assert "a header of 17825792 bytes" in refusal(model)


# Rows 18 to 22: the tensors


def tensor_fault(model: Model, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    with safetensors.safe_open(model.weights, "pt") as file:
        metadata = file.metadata()
    tensors = read_tensors(model.weights)
    change(tensors)
    write_tensors(model.weights, tensors, metadata)
    return refusal(model)


def a_name(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if "time_embed" in name and name.endswith("weight"))


def test_18_wrong_shape(model: Model) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[a_name(tensors)] = torch.zeros(3, 5)

    assert "(3, 5) instead of (64, " in tensor_fault(model, change)


def test_19_missing(model: Model) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "time_embed" in name]:
            del tensors[name]

    line = tensor_fault(model, change)
    assert " missing (" in line
    assert line.count("time_emb") >= 3
    assert "..." in line


def test_20_unknown(model: Model) -> None:
    line = tensor_fault(model, lambda tensors: tensors.update({f"strange{n}": torch.zeros(1) for n in range(5)}))
    assert "5 unknown (strange0, strange1, strange2 ...)" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_21_not_finite(value: float, model: Model) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[a_name(tensors)][0, 0] = value

    assert "1 with infinite or NaN values" in tensor_fault(model, change)


def test_22_whole_numbers_and_mixed_dtypes(model: Model) -> None:
    def halve_some(tensors: dict[str, torch.Tensor]) -> None:
        tensors[a_name(tensors)] = tensors[a_name(tensors)].bfloat16()

    tensors = read_tensors(model.weights)
    halve_some(tensors)
    with safetensors.safe_open(model.weights, "pt") as file:
        metadata = file.metadata()
    write_tensors(model.weights, tensors, metadata)
    # A cast that is stated: every network has one dtype, the one asked for.
    assert {p.dtype for p in load_unet(model.path).parameters()} == {torch.float32}

    def count(tensors: dict[str, torch.Tensor]) -> None:
        tensors[a_name(tensors)] = torch.zeros_like(tensors[a_name(tensors)], dtype=torch.int8)

    assert "of whole numbers instead of fractions" in tensor_fault(model, count)


# Rows 23 and 24: pickles


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def write_pickle(form: str, path: Path, content: object) -> None:
    if form == "raw":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("form", ["raw", "zip", "legacy"])
def test_23_malicious_pickles_under_a_good_name(form: str, model: Model, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    write_pickle(form, model.weights, {"state_dict": {"a": Malicious(marker)}})
    assert "is a pickle, which could run code; it is never opened here" in refusal(model)
    assert not marker.exists()


@pytest.mark.parametrize(("form", "target"), [("raw", "out"), ("zip", "out.safetensors"), ("legacy", "out")])
def test_23_malicious_pickles_converted(form: str, target: str, tmp_path: Path, cli: Cli) -> None:
    """What it asks for is named, and not done; torch's advice to trust the file is not passed on."""
    write_pickle(form, tmp_path / "evil.ckpt", {"state_dict": {"a": Malicious(tmp_path / "ran")}})
    before = snapshot(tmp_path)
    outcome = cli("convert", "evil.ckpt", target)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1)
    assert "posix.system, which is no data; nothing of it was run" in outcome.err
    assert "weights_only" not in outcome.err
    assert snapshot(tmp_path) == before


def test_24_zip_bomb(tmp_path: Path, cli: Cli) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(50_000_000))
    outcome = cli("convert", "bomb.ckpt", "out.safetensors")
    assert (outcome.code, outcome.err.count("\n")) == (3, 1)
    assert "unpacks to 50000006, which torch never writes" in outcome.err
    assert not (tmp_path / "out.safetensors").exists()


# Rows 25 and 26: shards


def shard(folder: Path) -> Path:
    """Split the U-Net over two files, and give back the index."""
    tensors = read_tensors(folder / UNET_WEIGHTS)
    names = sorted(tensors)
    halves = {"1": names[: len(names) // 2], "2": names[len(names) // 2 :]}
    places: dict[str, str] = {}
    for number, half in halves.items():
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        write_tensors(folder / "unet" / file, {name: tensors[name] for name in half}, {"format": "pt"})
        places |= dict.fromkeys(half, file)
    (folder / UNET_WEIGHTS).unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.fixture
def sharded(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "model")
    return shard(tmp_path / "model")


def folder_of(index: Path) -> Model:
    return Model(index.parent.parent, index)


def test_shards_open_as_one_file_would(sharded: Path, tiny_model: Path) -> None:
    ours, whole = load_model(sharded.parent.parent), load_model(tiny_model)
    assert all(torch.equal(a, b) for a, b in zip(ours.unet.parameters(), whole.unet.parameters(), strict=True))


def test_shards_in_the_hubs_cache_open(sharded: Path, tmp_path: Path) -> None:
    """There every file is a link into the blobs beside the snapshots, and that is where it may lead."""
    root = tmp_path / "models--a--b"
    snapshot_folder = root / "snapshots" / "0123"
    shutil.move(sharded.parent.parent, snapshot_folder)
    (root / "blobs").mkdir()
    for number, path in enumerate(sorted((snapshot_folder / "unet").iterdir())):
        path.rename(root / "blobs" / str(number))
        path.symlink_to(Path("..", "..", "..", "blobs", str(number)))
    assert load_unet(snapshot_folder).config.in_channels == 4


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "..", "x.bin"]
)
def test_25_shards_that_lie_elsewhere(place: str, sharded: Path) -> None:
    content = json.loads(sharded.read_text())
    content["weight_map"] = {name: place for name in content["weight_map"]}
    sharded.write_text(json.dumps(content))
    assert "which is no file of its own folder" in refusal(folder_of(sharded))


def test_25_a_shard_that_is_a_link_out_of_the_folder(sharded: Path, tmp_path: Path) -> None:
    first = sorted(sharded.parent.glob("*-of-*"))[0]
    first.rename(tmp_path / "elsewhere.safetensors")
    first.symlink_to(tmp_path / "elsewhere.safetensors")
    assert "is a link out of its folder" in refusal(folder_of(sharded))


def test_26_shards_and_index_disagree(sharded: Path) -> None:
    model, first = folder_of(sharded), sorted(sharded.parent.glob("*-of-*"))[0]
    content = sharded.read_text()
    shutil.copy(first, first.with_name(first.name.replace("00001-of", "00003-of")))
    assert "does not name diffusion_pytorch_model-00003-of-00002.safetensors" in refusal(model)
    first.with_name(first.name.replace("00001-of", "00003-of")).unlink()
    places = json.loads(content)
    del places["weight_map"]["conv_in.bias"]
    sharded.write_text(json.dumps(places))
    assert "is not to hold 1 tensors (conv_in.bias)" in refusal(model)
    sharded.write_text(content)
    first.unlink()
    assert f"names {first.name}, which is missing" in refusal(model)
    sharded.write_text('{"weight_map": {}}')
    assert "weight_map must map tensors to files" in refusal(model)


# Rows 27 to 30


def edit_config(model: Model, **changes: Any) -> None:
    """Of the U-Net, in the folder's file or in what we say in the single file's header."""
    if model.path.is_dir():
        path = model.path / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return
    header = json.loads(split(model.path)[0])
    config = json.loads(header["__metadata__"]["latentgen.config"])
    config["unet"] |= changes
    header["__metadata__"]["latentgen.config"] = json.dumps(config)
    with_header(model.path, header)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"in_channels": 9}, "instead of"),
        ({"block_out_channels": [16, 40]}, "instead of"),
        ({"layers_per_block": 2}, "missing"),
        ({"auto_map": {"AutoModel": "model.UNet"}}, "unknown key auto_map"),
        ({"_class_name": "FluxTransformer2DModel"}, "only UNet2DConditionModel"),
        ({"brand_new": 3}, "unknown key brand_new = 3"),
    ],
)
def test_27_28_config_and_tensors_disagree(changes: dict[str, Any], told: str, model: Model) -> None:
    edit_config(model, **changes)
    assert told in refusal(model)


def test_28_code_beside_weights_is_never_run(model: Model, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for place in (model.weights.parent, model.path.parent):
        for name in ("__init__.py", "model.py", "conftest.py"):
            (place / name).write_text(f"open({str(marker)!r}, 'w')")
    load_model(model.path)
    assert not marker.exists()


def test_29_a_file_that_shrinks_while_it_is_read(model: Model) -> None:
    """Never a signal: it is read, not mapped. Either all of it was there, or one line says that it was not."""
    content = model.weights.read_bytes()
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            os.truncate(model.weights, len(content) // 2)
            model.weights.write_bytes(content)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(20):
            try:
                load_unet(model.path)
            except ModelLoadError:
                continue
    finally:
        stop.set()
        disturber.join()
    model.weights.write_bytes(content)
    loaded = load_model(model.path)
    os.truncate(model.weights, 10)
    assert all(parameter.isfinite().all() for parameter in loaded.unet.parameters())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_30_mode_follows_the_umask(umask: int, mode: int, tiny_model: Path, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        convert(tiny_model, tmp_path / "model.safetensors")
        convert(tmp_path / "model.safetensors", tmp_path / "model")
    finally:
        os.umask(before)
    files = [tmp_path / "model.safetensors", *(path for path in (tmp_path / "model").rglob("*") if path.is_file())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}
    folders = [path for path in (tmp_path / "model", *(tmp_path / "model").rglob("*")) if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o777 & ~umask}


@pytest.mark.parametrize("fault", ["1", "20", "23"])
def test_the_command_line_says_so_in_one_line(fault: str, model: Model, tmp_path: Path, cli: Cli) -> None:
    if fault == "1":
        os.truncate(model.weights, 5000)
    elif fault == "20":
        append(b"\0")(model.weights)
    else:
        write_pickle("zip", model.weights, {"a": torch.zeros(1)})
    before = snapshot(tmp_path)
    outcome = cli("generate", "a cat", "-m", model.path, "-o", "cat.png")
    assert (outcome.code, outcome.out) == (3, "")
    assert (outcome.err.count("\n"), outcome.err.startswith("error: ")) == (1, True)
    assert snapshot(tmp_path) == before
