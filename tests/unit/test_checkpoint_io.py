"""safetensors files: what is read, what is refused and how, and that writing is atomic."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latentgen.checkpoints.hashes import sha256
from latentgen.checkpoints.header import open_header
from latentgen.checkpoints.io import (
    TORCH_DTYPES,
    load_strict,
    read_tensors,
    write_tensors,
)
from latentgen.errors import LatentgenError, ModelLoadError, ModelNotFoundError, RuntimeFailure

Entry = dict[str, object]


def some_tensors() -> dict[str, Tensor]:
    return {
        "a.weight": torch.randn(3, 4),
        "a.bias": torch.randn(3).half(),
        "scalar": torch.tensor(2.5),
        "ids": torch.arange(5),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False, True]),
    }


def raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int = 0, end: int = 4, shape: object = (1,), dtype: object = "F32", **more: object) -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name])


def test_what_the_library_writes_we_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(some_tensors(), tmp_path / "x.safetensors", {"format": "pt"})
    torch.manual_seed(0)
    assert_same(read_tensors(tmp_path / "x.safetensors"), safetensors.torch.load_file(tmp_path / "x.safetensors"))
    assert open_header(tmp_path / "x.safetensors").metadata == {"format": "pt"}


def test_what_we_write_the_library_reads(tmp_path: Path) -> None:
    tensors = some_tensors() | {"view": torch.randn(4, 6).t()[1:]}
    write_tensors(tmp_path / "new" / "x.safetensors", tensors, {"note": "ünïcode"})
    path = tmp_path / "new" / "x.safetensors"
    assert_same(safetensors.torch.load_file(path), tensors)
    assert_same(read_tensors(path), tensors)
    assert open_header(path).metadata == {"note": "ünïcode"}
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"note": "ünïcode"}


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=9),
        st.tuples(st.sampled_from(sorted(TORCH_DTYPES)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tensors_survive_both_writers(tmp_path: Path, content: dict[str, tuple[str, list[int]]]) -> None:
    content.pop("__metadata__", None)
    tensors = {name: torch.ones(shape, dtype=TORCH_DTYPES[dtype]) for name, (dtype, shape) in content.items()}
    write_tensors(tmp_path / "ours", tensors)
    safetensors.torch.save_file(tensors, tmp_path / "theirs")
    assert_same(safetensors.torch.load_file(tmp_path / "ours"), tensors)
    assert_same(read_tensors(tmp_path / "theirs"), tensors)


def test_same_tensors_same_bytes(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_tensors(tmp_path / "one", tensors)
    write_tensors(tmp_path / "two", dict(reversed(tensors.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sha256(tmp_path / "one") == hashlib.sha256((tmp_path / "one").read_bytes()).hexdigest()
    assert sha256(tmp_path / "one", tmp_path / "two") != sha256(tmp_path / "one")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "x", some_tensors())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "x", {"a": torch.ones(1)})
    before = (tmp_path / "x").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeFailure, match="No space left"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(1)})
    assert (tmp_path / "x").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_reading_keeps_no_hold_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(50_000)})
    tensors = read_tensors(path)
    os.truncate(path, 10)
    assert tensors["a"].sum() == 50_000


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    write_tensors(tmp_path / "whole", {"a": torch.ones(3), "b": torch.ones(2, 2)}, {"format": "pt"})
    content = (tmp_path / "whole").read_bytes()
    for size in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(ModelLoadError):
            read_tensors(tmp_path / "cut")


def test_a_flipped_header_bit_is_refused_or_read_as_the_library_reads_it(tmp_path: Path) -> None:
    write_tensors(tmp_path / "whole", {"a": torch.ones(3), "b": torch.ones(2, 2)})
    content = (tmp_path / "whole").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for position in range(end):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            (tmp_path / "x").write_bytes(damaged)
            try:
                ours = read_tensors(tmp_path / "x")
            except LatentgenError:
                refused += 1
            else:
                assert_same(ours, safetensors.torch.load_file(tmp_path / "x"))
    assert refused > 4 * end


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"PK\x03\x04" + bytes(60), "pickle.*latentgen convert x.safetensors"),
        (b"\x80\x02}q\x00" + bytes(60), "pickle.*latentgen convert x.safetensors"),
        (raw(b"{}", length=2**63), "header length"),
        (raw(b"{}", length=3), "header length"),
        (raw(b"{}", length=0), "header length"),
        (raw(b" {}"), "does not begin with {"),
        (raw(b"[]"), "does not begin with {"),
        (raw(b'{"a":1}}'), "Extra data"),
        (raw(b"\x7b\xff\x7d"), "not UTF-8"),
        (raw(b'{"a":' + b"[" * 100_000), "nested too deeply|malformed"),
        (raw({"a": entry()}, bytes(5)), "bytes after the last tensor"),
        (raw({"a": entry()}, bytes(3)), "cut short"),
        (raw({"a": entry(), "b": entry(2, 6)}, bytes(6)), "b overlaps"),
        (raw({"a": entry(), "b": entry(8, 12)}, bytes(12)), "b leaves a gap"),
        (raw({"a": entry(4, 8)}, bytes(8)), "a leaves a gap"),
        (raw({"a": entry(4, 0)}, bytes(4)), "a holds -4 bytes"),
        (raw({"a": entry(shape=[2])}, bytes(4)), r"a holds 4 bytes, but F32 \[2\] needs 8"),
        (raw({"a": entry(shape=[2**31, 2**31, 2**31])}, bytes(4)), "impossibly large"),
        (raw({"a": entry(0, 0, shape=[0, 9999999999999999999])}), "impossibly large"),
        (raw({"a": entry(0, 0, shape=[0, 2**61, 64])}), "impossibly large"),
        (raw(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)), "number -1"),
        (raw(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'), "number -0"),
        (raw(b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', bytes(4)), "number 1.0"),
        (raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)), "number NaN"),
        (raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', bytes(4)), "number 999"),
        (raw({"a": entry(shape=[True])}, bytes(4)), "malformed header entry for tensor a"),
        (raw({"a": entry(shape="4")}, bytes(4)), "malformed header entry for tensor a"),
        (raw({"a": entry(extra=1)}, bytes(4)), "malformed header entry for tensor a"),
        (raw({"a": 3}), "malformed header entry for tensor a"),
        (raw({"__metadata__": {"a": 1}}), "__metadata__ must map text"),
        (raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":0}', bytes(4)), "'a' appears twice"),
        (raw(b'{"a":{"shape":[1],"shape":[1],"dtype":"F32","data_offsets":[0,4]}}', bytes(4)), "'shape' appears twice"),
        (raw({"a": entry(0, 1, dtype="F8_E4M3")}, bytes(1)), "F8_E4M3.*not supported"),
        (raw({"a\x1b[2J": entry()}, bytes(4)), r"not plain text: 'a\\x1b"),
        (raw({"é": entry()}, bytes(4)), r"not plain text: '\\xe9'"),
        (raw({"": entry()}, bytes(4)), "not plain text"),
    ],
)  # fmt: skip
def test_unsound_files_say_what_is_wrong(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=told) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_of_60_bytes_is_no_web_page(tmp_path: Path) -> None:
    header = json.dumps({"a": entry()}, separators=(",", ":")).encode().ljust(60)
    (tmp_path / "x").write_bytes(raw(header, bytes(4)))
    assert (tmp_path / "x").read_bytes()[:1] == b"<"
    assert read_tensors(tmp_path / "x")["a"].shape == (1,)


def test_huge_headers_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 17 * 2**20))
        file.truncate(18 * 2**20)
    with pytest.raises(ModelLoadError, match="a header of 17825792 bytes"):
        read_tensors(path)
    path.write_bytes(raw({str(number): entry(0, 0, [0]) for number in range(20_001)}))
    with pytest.raises(ModelLoadError, match="more than 20000 tensors"):
        read_tensors(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_tensors(tmp_path / "none")
    with pytest.raises(ModelLoadError, match="Is a directory"):
        read_tensors(tmp_path)


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(3, 2, dtype=dtype)


def test_load_strict_into_a_meta_module() -> None:
    module = linear()
    tensors = {"weight": torch.randn(2, 3).half(), "bias": torch.randn(2).half()}
    load_strict(module, tensors, "file")
    assert module.weight.dtype == torch.float32
    assert module.weight.requires_grad
    assert torch.equal(module.weight, tensors["weight"].float())
    load_strict(module, tensors, "file", dtype=torch.bfloat16)
    assert module.bias.dtype == torch.bfloat16


def test_load_strict_keeps_integer_buffers() -> None:
    module = nn.Module()
    module.register_buffer("ids", torch.zeros(3, dtype=torch.int64))
    load_strict(module, {"ids": torch.arange(3)}, "file", dtype=torch.float16)
    assert module.ids.tolist() == [0, 1, 2]
    assert module.ids.dtype == torch.int64


def lose_weight(tensors: dict[str, Tensor]) -> None:
    del tensors["weight"]
    tensors |= {f"extra{number}": torch.ones(1) for number in range(5)}
    tensors["bias"] = torch.ones(7)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lose_weight,
            r"file does not fit this Linear: 1 missing \(weight\); 5 unknown \(extra0, extra1, extra2 \.\.\.\); "
            r"1 of another shape \(bias \(7,\) instead of \(2,\)\)",
        ),
        (
            lambda tensors: tensors.update(bias=torch.tensor([0.0, float("nan")])),
            r"1 with infinite or NaN values \(bias\)",
        ),
        (lambda tensors: tensors.update(bias=torch.tensor([0.0, -float("inf")])), "the file is damaged"),
        (
            lambda tensors: tensors.update(bias=torch.tensor([1, 2])),
            r"1 of whole numbers instead of fractions \(bias\)",
        ),
    ],
)
def test_load_strict_lists_everything_and_changes_nothing(
    damage: Callable[[dict[str, Tensor]], None], told: str
) -> None:
    module = nn.Linear(3, 2)
    before = module.bias.detach().clone()
    tensors = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    damage(tensors)
    with pytest.raises(ModelLoadError, match=told):
        load_strict(module, tensors, "file")
    assert torch.equal(module.bias, before)


def test_load_strict_refuses_what_overflows_half_precision() -> None:
    tensors = {"weight": torch.full((2, 3), 1e6), "bias": torch.zeros(2)}
    with pytest.raises(ModelLoadError, match=r"do not fit into torch\.float16"):
        load_strict(linear(), tensors, "file", dtype=torch.float16)
