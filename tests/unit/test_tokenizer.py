"""CLIP's tokenizer without a reference: shapes, round trips, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentgen.errors import ConfigError, InputError, ModelLoadError
from latentgen.models.tokenizer import CONTEXT_LENGTH, PUBLISHED_MERGES, Tokenizer, byte_symbols

SMALL = Tokenizer.published(300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SMALL.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_published_sizes() -> None:
    full = Tokenizer.published()
    assert (full.vocab_size, full.bos_token_id, full.eos_token_id, full.pad_token_id) == (49408, 49406, 49407, 49407)
    embedded = Tokenizer.published(7680)
    assert (embedded.vocab_size, embedded.bos_token_id, embedded.eos_token_id) == (8194, 8192, 8193)
    assert full.tokenize("a photo of a cat") == [320, 1125, 539, 320, 2368]


def test_bytes_have_256_symbols_and_exclamation_mark_is_first() -> None:
    assert len(set(byte_symbols())) == 256
    assert byte_symbols()[0] == "!"


def test_published_does_not_import_open_clip() -> None:
    code = (
        "import sys; from latentgen.models.tokenizer import Tokenizer; Tokenizer.published(8);"
        "print('open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_encode_shape_and_layout() -> None:
    ids = SMALL.encode(["a cat", ""])
    assert ids.shape == (2, CONTEXT_LENGTH)
    assert ids.dtype == torch.int64
    words = SMALL.tokenize("a cat")
    assert ids[0].tolist() == [SMALL.bos_token_id, *words] + [SMALL.eos_token_id] * (76 - len(words))
    assert ids[1].tolist() == [SMALL.bos_token_id] + [SMALL.eos_token_id] * 76
    assert SMALL.encode([]).shape == (0, CONTEXT_LENGTH)


def test_encode_makes_real_tensors_inside_a_meta_context() -> None:
    with torch.device("meta"):
        assert SMALL.encode(["a"]).device.type == "cpu"


def test_case_and_whitespace_do_not_matter() -> None:
    assert SMALL.tokenize("  A\tRed\u00a0 CAT\n") == SMALL.tokenize("a red cat")
    assert SMALL.tokenize("e\u0301") == SMALL.tokenize("\u00e9")


@pytest.mark.parametrize("control", ["<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>"])
def test_control_tokens_in_a_prompt_are_plain_text(control: str) -> None:
    ids = SMALL.tokenize(f"a {control} b")
    assert not {SMALL.bos_token_id, SMALL.eos_token_id} & set(ids)
    assert SMALL.decode(ids).replace(" ", "") == f"a{control}b"


def test_encode_keeps_the_first_75_tokens_and_tokenize_all() -> None:
    text = "1 2 3 " * 30
    assert len(SMALL.tokenize(text)) == 90
    assert SMALL.encode([text])[0].tolist() == SMALL.wrap(SMALL.tokenize(text)[:75])


def test_wrapping_fills_up_to_77() -> None:
    bos, eos = SMALL.bos_token_id, SMALL.eos_token_id
    assert SMALL.wrap([5, 6]) == [bos, 5, 6] + [eos] * 74
    assert SMALL.wrap(range(75)) == [bos, *range(75), eos]


def test_a_token_is_spelled_as_text() -> None:
    assert "".join(SMALL.spell(number) for number in SMALL.tokenize("The  red SHIP, 1")) == "the red ship , 1 "
    assert [SMALL.spell(number) for number in SMALL.tokenize("é")] == ["\ufffd", "\ufffd "], "a byte of two each"


def test_prompts_can_be_looked_at_without_torch() -> None:
    code = (
        "import sys; from latentgen.models.tokenizer import Tokenizer; import latentgen.prompts.chunks;"
        "Tokenizer.published(8).tokenize('a cat'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("text", "told"), [("ab\udcffc", "byte 0xff at position 2"), ("\ud800", "U+D800 at position 0")]
)
def test_lone_surrogates_are_refused(text: str, told: str) -> None:
    for method in (SMALL.tokenize, lambda text: SMALL.encode([text])):
        with pytest.raises(InputError, match=told.replace("+", r"\+")):
            method(text)


@given(st.text())
def test_any_text_encodes(text: str) -> None:
    assert all(0 <= number < SMALL.bos_token_id for number in SMALL.tokenize(text))
    assert SMALL.encode([text]).shape == (1, CONTEXT_LENGTH)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_ascii_comes_back_from_its_ids(text: str) -> None:
    assert SMALL.decode(SMALL.tokenize(text)).replace(" ", "") == text.lower().replace(" ", "")


def test_decode_stops_at_eos_and_refuses_foreign_ids() -> None:
    ids = SMALL.encode(["it's RED!"])
    assert SMALL.decode(ids[0]) == "it 's red !"
    with pytest.raises(InputError, match="99999"):
        SMALL.decode([99999])


def test_merges_out_of_range_are_refused() -> None:
    for merges in (-1, PUBLISHED_MERGES + 1):
        with pytest.raises(ConfigError, match="48894 merges"):
            Tokenizer.published(merges)


def test_folder_round_trip(folder: Path) -> None:
    opened = Tokenizer.from_folder(folder)
    text = "Two tiny ships, 1984 — naïve café 🙂"
    assert opened.tokenize(text) == SMALL.tokenize(text)
    assert torch.equal(opened.encode([text]), SMALL.encode([text]))


def test_sd2_pads_with_an_exclamation_mark(folder: Path) -> None:
    edit(folder / "special_tokens_map.json", pad_token={"content": "!", "lstrip": False})
    opened = Tokenizer.from_folder(folder)
    assert opened.pad_token_id == 0
    ids = opened.encode(["wow!"])[0].tolist()
    assert ids[-1] == 0
    assert ids.index(opened.eos_token_id) == 1 + len(SMALL.tokenize("wow!"))
    assert opened.tokenize("wow!") == SMALL.tokenize("wow!")


def test_an_added_token_is_one_token(folder: Path) -> None:
    """Whole in the text; kept by saving; spelled out again."""
    word = SMALL.vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": word, "<1>": word + 1}))
    opened = Tokenizer.from_folder(folder)
    a, table = SMALL.tokenize("a"), SMALL.tokenize("table")
    assert opened.tokenize("a <cat-toy> table <1>") == [*a, word, *table, word + 1]
    assert opened.vocab_size == SMALL.vocab_size + 2
    assert opened.decode(opened.encode(["A <Cat-Toy> table"])[0]) == "a <cat-toy> table"
    assert opened.spell(word) == "<cat-toy> "
    opened.save(folder.parent / "saved")
    assert Tokenizer.from_folder(folder.parent / "saved").tokenize("<cat-toy>") == [word]
    assert (folder.parent / "saved" / "vocab.json").read_bytes() == (folder / "vocab.json").read_bytes()
    SMALL.save(folder.parent / "plain")
    assert "added" not in (folder.parent / "plain" / "tokenizer_config.json").read_text()
    assert not (folder.parent / "plain" / "added_tokens.json").exists()


def test_an_added_control_token_is_plain_text(folder: Path) -> None:
    pad = {"content": "[PAD]", "special": True}
    edit(folder / "tokenizer_config.json", pad_token="[PAD]", added_tokens_decoder={str(SMALL.vocab_size): pad})
    for opened in (Tokenizer.from_folder(folder), SMALL):
        assert opened.tokenize("a [PAD]") == SMALL.tokenize("a [PAD]")
        opened.save(folder.parent / str(opened.pad_token_id))
    assert Tokenizer.from_folder(folder.parent / str(SMALL.vocab_size)).pad_token_id == SMALL.vocab_size


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ({"900": {"content": "<far>"}}, r"do not go on from the vocabulary's: <far> 900 .the first one's is 814"),
        ({"814": {"content": "<|endoftext|>"}}, r"do not go on from the vocabulary's: <\|endoftext\|> 814"),
        ({"814": {"content": ""}}, r"tokenizer_config\.json: no added token: 814"),
        ({"814": "<cat-toy>"}, "no added token: 814 = <cat-toy>"),
        ({"814": {"content": "<cat-toy>", "lstrip": 1}}, "no added token: 814"),
        ({"9" * 5000: {"content": "<cat-toy>"}}, "no added token: 999"),
        ({"814": {"content": "\ud800"}}, "do not belong together"),
        (["<cat-toy>"], "added_tokens_decoder is no object"),
    ],
)
def test_added_tokens_that_cannot_be_honoured_are_named(folder: Path, listed: object, told: str) -> None:
    edit(folder / "tokenizer_config.json", added_tokens_decoder=listed)
    with pytest.raises(ModelLoadError, match=told):
        Tokenizer.from_folder(folder)


def test_merges_out_of_a_tokenizer_json(folder: Path) -> None:
    vocab = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": lines}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    (folder / "vocab.json").unlink()
    assert Tokenizer.from_folder(folder).tokenize("the red ship") == SMALL.tokenize("the red ship")
    (folder / "tokenizer.json").write_text(json.dumps({"model": model | {"type": "WordPiece"}}))
    with pytest.raises(ModelLoadError, match="not a CLIP tokenizer"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": model | {"merges": ["a b c"]}}))
    with pytest.raises(ModelLoadError, match="malformed"):
        Tokenizer.from_folder(folder)


def damage_vocab_ids(folder: Path) -> None:
    edit(folder / "vocab.json", **{"!": 5})


def damage_vocab_base(folder: Path) -> None:
    (folder / "vocab.json").write_text('{"a": 0}')


def damage_vocab_type(folder: Path) -> None:
    edit(folder / "vocab.json", **{"!": "0"})


def damage_vocab_json(folder: Path) -> None:
    (folder / "vocab.json").write_text('{\n"a": 0,\n}')


def damage_merges_line(folder: Path) -> None:
    (folder / "merges.txt").write_text("#version: 0.2\ni n\na b c\n")


def damage_merges_pair(folder: Path) -> None:
    (folder / "merges.txt").write_text("#version: 0.2\n! !\n")


def damage_merges_encoding(folder: Path) -> None:
    (folder / "merges.txt").write_bytes(b"\xff\xfe")


def damage_pad(folder: Path) -> None:
    edit(folder / "special_tokens_map.json", pad_token=3)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_vocab_ids, "each once"),
        (damage_vocab_base, "lacks 5.. of CLIP's base tokens"),
        (damage_vocab_type, "integer"),
        (damage_vocab_json, r"vocab\.json, line 3"),
        (damage_merges_line, r"merges\.txt, line 3: expected two symbols, found 3"),
        (damage_merges_pair, "do not belong together"),
        (damage_merges_encoding, r"merges\.txt cannot be read"),
        (damage_pad, "pad_token must be a token"),
        (lambda folder: (folder / "merges.txt").unlink(), r"merges\.txt is missing"),
        (lambda folder: (folder / "vocab.json").unlink(), r"vocab\.json is missing"),
    ],
)
def test_damaged_folders_say_what_is_wrong(folder: Path, damage, told: str) -> None:
    damage(folder)
    with pytest.raises(ModelLoadError, match=told):
        Tokenizer.from_folder(folder)
