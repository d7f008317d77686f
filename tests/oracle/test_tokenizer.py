"""The ids of transformers' CLIPTokenizer and of open_clip's, exactly."""

from __future__ import annotations

import html
from pathlib import Path

import ftfy
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer, CLIPTokenizerFast

from latentgen.models.tokenizer import CONTEXT_LENGTH, Tokenizer

PROMPTS = [
    "",
    " ",
    "a photo of a cat",
    "A Lighthouse at SUNSET, oil on canvas -- trending, 8k, (masterpiece:1.3)",
    "it's we're they've I'm she'll he'd don't 's 't",
    "DON'T! 'quoted' \"double\" rock'n'roll",
    "numbers 0 1 12 1984 3.14159 1,000,000 ½ ² Ⅳ ١٢٣",
    "naïve café Ångström ÉCOLE straße İstanbul ΣΊΣΥΦΟΣ",
    "e\u0301 versus \u00e9, a\u030a versus \u00e5",
    "日本の風景、富士山 한국어 Русский текст हिन्दी ภาษาไทย עברית العربية",
    "emoji 🙂🚀👩‍👩‍👧 🇩🇪 ❤️",
    "tabs\tand\nnewlines \u00a0 non-breaking\u2003em space",
    "punctuation !!! ??? ... ,;:-_+=*/\\|<>[]{}()@#$%^&~`",
    "unclosed ( bracket [ of { kinds",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 300,
    "a red cube on a blue sphere " * 30,
    "<html> &amp; </w> <b>tags</b>",
    "\x00\x07 control \x1b[31m characters",
]
OPEN_CLIP_PROMPTS = [prompt for prompt in PROMPTS if not any(trait in prompt for trait in ("Σ", "&amp;", "\x00"))]
"""open_clip cleans with ftfy and html.unescape first and knows the final sigma; transformers and we do neither."""


@pytest.fixture(scope="module", params=[None, 7680], ids=["published", "cut"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.published(request.param).save(path)
    return path


@pytest.fixture(scope="module")
def published() -> Tokenizer:
    return Tokenizer.published()


@pytest.fixture(scope="module")
def open_clip_tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def theirs_encode(theirs: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return theirs(
        texts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


@pytest.mark.parametrize("family", [CLIPTokenizer, CLIPTokenizerFast])
def test_prompts_as_in_transformers(folder: Path, family: type[CLIPTokenizer]) -> None:
    ours, theirs = Tokenizer.from_folder(folder), family.from_pretrained(folder)
    assert theirs.model_max_length == CONTEXT_LENGTH
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        ours.bos_token_id,
        ours.eos_token_id,
        ours.pad_token_id,
    )
    assert torch.equal(ours.encode(PROMPTS), theirs_encode(theirs, PROMPTS))
    for prompt in PROMPTS:
        assert ours.tokenize(prompt) == theirs(prompt, add_special_tokens=False).input_ids


def test_any_text_as_in_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer.from_folder(folder), CLIPTokenizer.from_pretrained(folder)

    @settings(max_examples=400, deadline=None)
    @given(st.text().filter(lambda text: "<|" not in text))
    def check(text: str) -> None:
        assert ours.tokenize(text) == theirs(text, add_special_tokens=False).input_ids

    check()


def test_folder_written_by_transformers_opens_in_ours(folder: Path, tmp_path: Path) -> None:
    theirs = CLIPTokenizer.from_pretrained(folder)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(Tokenizer.from_folder(tmp_path).encode(PROMPTS), theirs_encode(theirs, PROMPTS))


def test_sd2_padding_as_in_transformers(tmp_path: Path) -> None:
    Tokenizer.published(7680).save(tmp_path)
    original = CLIPTokenizer.from_pretrained(tmp_path, pad_token="!")
    original.save_pretrained(tmp_path / "sd2")
    ours, theirs = Tokenizer.from_folder(tmp_path / "sd2"), CLIPTokenizer.from_pretrained(tmp_path / "sd2")
    assert ours.pad_token_id == theirs.pad_token_id == 0
    prompts = [prompt for prompt in PROMPTS if "!" not in prompt]
    assert torch.equal(ours.encode(prompts), theirs_encode(theirs, prompts))


def test_prompts_as_in_open_clip(published: Tokenizer, open_clip_tokenizer: SimpleTokenizer) -> None:
    rows = published.encode(OPEN_CLIP_PROMPTS)
    expected = open_clip_tokenizer(OPEN_CLIP_PROMPTS)
    assert len(OPEN_CLIP_PROMPTS) >= 12
    for prompt, row, want in zip(OPEN_CLIP_PROMPTS, rows, expected, strict=True):
        kept = int(want.argmax()) + 1
        assert row[:kept].tolist() == want[:kept].tolist(), prompt
        assert set(row[kept:].tolist()) <= {published.pad_token_id}
        assert set(want[kept:].tolist()) <= {0}


LATIN = st.characters(min_codepoint=0x20, max_codepoint=0x17E, exclude_characters="&ŉ", categories="LNPSZ")


@settings(max_examples=400, deadline=None)
@given(text=st.text(LATIN))
def test_latin_text_as_in_open_clip(text: str, published: Tokenizer, open_clip_tokenizer: SimpleTokenizer) -> None:
    assume(html.unescape(ftfy.fix_text(text)) == text)  # open_clip repairs mojibake first; we take text as it is
    assert published.tokenize(text) == open_clip_tokenizer.encode(text)
