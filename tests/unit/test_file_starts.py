"""Pictures told by their first bytes: what Pillow writes is known, what only begins alike is not."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from latentgen.file_starts import START_BYTES, picture_format


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_what_pillow_writes_is_told(format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format)
    assert picture_format(file.getvalue()[:START_BYTES]) == format


@pytest.mark.parametrize("start", [b"", b"RIFF", b"RIFF\x24\0\0\0WAVEfmt ", b"GIF", b"\xff\xd8", b"BM", b"II*\0"])
def test_anything_else_is_none(start: bytes) -> None:
    assert picture_format(start) is None
