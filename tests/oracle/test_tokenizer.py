"""The ids of transformers' CLIPTokenizer and of open_clip's, exactly."""

from __future__ import annotations

import html
import json
from pathlib import Path

import ftfy
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from transformers import AddedToken, CLIPTokenizer, CLIPTokenizerFast

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
EOS_ID = 49407
"""CLIP's last."""
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


WORDS = [
    "a <cat-toy> on a table",
    "A <CAT-TOY>, two<cat-toy>s; <Dog-Toy> <dog-toy>",
    "<cat-toy><cat-toy>  <Dog-Toy>\n",
    "left  <left>  left, right  <right>  right",
    "whole <whole>word <whole> word<whole>",
]
ADDED = [
    "<cat-toy>",
    AddedToken("<Dog-Toy>", normalized=False),
    AddedToken("<left>", lstrip=True),
    AddedToken("<right>", rstrip=True, normalized=False),
    AddedToken("<whole>", single_word=True),
    AddedToken("<special>", special=True, normalized=False),
]


@pytest.fixture(params=["added_tokens.json", "tokenizer.json", "tokenizer_config.json"])
def with_added_tokens(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """CLIP's own tokenizer with tokens of all kinds, in one of the forms that transformers has written."""
    plain, own = tmp_path / "plain", tmp_path / "own"
    for folder in (plain, own):
        Tokenizer.published().save(folder)
    theirs = CLIPTokenizer.from_pretrained(plain)
    assert theirs.add_tokens(ADDED) == len(ADDED)
    if request.param == "tokenizer.json":
        theirs.save_pretrained(tmp_path / "theirs")
        assert not (tmp_path / "theirs" / "vocab.json").exists()
        return tmp_path / "theirs"
    tokens = {number: token for number, token in theirs.added_tokens_decoder.items() if number > EOS_ID}
    if request.param == "added_tokens.json":  # before 4.33: ids alone
        (own / request.param).write_text(json.dumps({token.content: number for number, token in tokens.items()}))
        return own
    config = json.loads((own / request.param).read_text())
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    listed = {str(number): {name: getattr(token, name) for name in flags} for number, token in tokens.items()}
    (own / request.param).write_text(json.dumps({**config, "added_tokens_decoder": listed}))
    return own


def test_added_tokens_as_in_transformers(with_added_tokens: Path, tmp_path: Path) -> None:
    """What they give for the folder, and for the one that we save of it."""
    theirs, ours = CLIPTokenizer.from_pretrained(with_added_tokens), Tokenizer.from_folder(with_added_tokens)
    assert ours.tokenize(WORDS[0]) == [320, EOS_ID + 1, 525, 320, 2175]
    ours.save(tmp_path / "saved")
    saved_theirs = CLIPTokenizer.from_pretrained(tmp_path / "saved")
    saved_ours = Tokenizer.from_folder(tmp_path / "saved")
    assert ours.vocab_size == saved_ours.vocab_size == len(theirs) == len(saved_theirs) == EOS_ID + 1 + len(ADDED)
    for prompt in [*WORDS, "a <special> <SPECIAL>", *PROMPTS]:
        wanted = theirs(prompt, add_special_tokens=False).input_ids
        assert ours.tokenize(prompt) == wanted, prompt
        assert saved_ours.tokenize(prompt) == wanted, prompt
        assert saved_theirs(prompt, add_special_tokens=False).input_ids == wanted, prompt


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
