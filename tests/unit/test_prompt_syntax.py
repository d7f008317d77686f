"""Prompts taken apart: A1111's published examples, chunks by hand, names of embeddings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgen.errors import InputError
from latentgen.models.tokenizer import Tokenizer
from latentgen.prompts.check import check_prompts, skipped_layers
from latentgen.prompts.chunks import Token, chunk_prompt
from latentgen.prompts.embeddings import find_embeddings
from latentgen.prompts.syntax import escape, parse_prompt
from latentgen.request import RequestError, complete_request
from tests.tiny import TINY_MODEL

SMALL = Tokenizer.published(300)


def sections(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(each.text, each.weight) for each in section] for section in parse_prompt(prompt).sections]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [  # the examples beside A1111's parser, number by number
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        # the table of its wiki
        ("((word))", [("word", 1.2100000000000002)]),
        ("[word]", [("word", 1 / 1.1)]),
        ("(word:1.5)", [("word", 1.5)]),
        ("(word:0.25)", [("word", 0.25)]),
        (r"\(word\)", [("(word)", 1.0)]),
        # what follows from its rules
        ("", []),
        ("smile :)", [("smile :)", 1.0)]),
        ("a: b, ratio 1:2", [("a: b, ratio 1:2", 1.0)]),
        ("[low:1.5)", [("low:1.5)", 1 / 1.1)]),
        ("a]b", [("a]b", 1.0)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.1 / 1.1), (" c", 1 / 1.1)]),
        ("(a: .5 )", [("a", 0.5)]),
        ("(a:-1)(b:0)", [("a", -1.0), ("b", 0.0)]),
        (r"a\\b, c\d", [("a\\b, cd", 1.0)]),
        ("a <lora> <b:c>", [("a <lora> <b:c>", 1.0)]),
    ],
)
def test_emphasis(prompt: str, wanted: list[tuple[str, float]]) -> None:
    (found,) = sections(prompt)
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted], rel=1e-15)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a BREAK b", [["a "], [" b"]]),
        ("BREAK a", [[], [" a"]]),
        ("a BREAK BREAK b BREAK", [["a "], [" "], [" b "], []]),
        ("a break, BREAKFAST, aBREAK", [["a break, BREAKFAST, aBREAK"]]),
        ("(a BREAK b), c", [["a "], [" b", ", c"]]),
    ],
)
def test_break_parts_a_prompt(prompt: str, texts: list[list[str]]) -> None:
    assert [[text for text, _ in section] for section in sections(prompt)] == texts


def test_a_break_within_brackets_keeps_the_weight() -> None:
    assert sections("(a BREAK b:1.5)") == [[("a ", 1.5)], [(" b", 1.5)]]


def test_lora_tags_are_taken_out() -> None:
    parsed = parse_prompt("<lora:ink-v2.safetensors:0.8>a (cat:1.2) <lora:old film><lora:x:-.5:-0.5><lora:ink-v2:1>")
    assert parsed.loras == (("ink-v2", 0.8), ("old film", 1.0), ("x", -0.5), ("ink-v2", 1.0))
    assert parsed.text == "a (cat:1.2) "
    assert [[segment.text for segment in section] for section in parsed.sections] == [["a ", "cat", " "]]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<lora:x:strong>", "'strong' is not a scale"),
        ("<lora:x:>", "'' is not a scale"),
        ("<lora:x:1e3>", "'1e3' is not a scale"),
        ("<lora::1>", "is not a LoRA and its scale"),
        ("<lora:x:1:1:1>", "is not a LoRA and its scale"),
        ("<lora:x:0.8:0.6>", "apart, which is not supported .one scale for both: <lora:x:0.6>"),
        ("(a:99999)", "'a' the weight 99999 .at most 1000"),
        ("(a:-1001)", "the weight -1001"),
        ("(a:" + "9" * 400 + ")", "'a' the weight inf"),
        ("(" * 65 + "a", r"nests more than 64 brackets \( .\\\( is the sign itself"),
        ("[" * 65 + "a", r"nests more than 64 brackets \["),
    ],
)
def test_what_cannot_be_read_is_named(prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_prompt(prompt)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a [cat:dog:0.5] [x:3] [y::.7] [p|q]", ("[cat:dog:0.5]", "[x:3]", "[y::.7]", "[p|q]")),
        ("cats AND dogs AND birds", ("AND",)),
        (r"a \[cat:dog:0.5\] [low] a|b {p|q} sand HAND and (a:1.2)", ()),
    ],
)
def test_what_a1111_would_read_otherwise_is_listed(prompt: str, wanted: tuple[str, ...]) -> None:
    assert parse_prompt(prompt).unsupported == wanted


@given(st.lists(st.sampled_from([*"ab ()[]\\:<>|,.01", "<lora:x>", "<lora:", "BREAK", " AND ", ":1.2)"])).map("".join))
def test_an_escaped_text_is_itself(text: str) -> None:
    parsed = parse_prompt(escape(text))
    (section,) = parsed.sections
    assert [(each.text.lower(), each.weight) for each in section] == ([(text.lower(), 1.0)] if text else [])
    assert (parsed.loras, parsed.unsupported) == ((), ())


@given(st.text(st.sampled_from("ab()[]\\:1")))
def test_no_letter_of_a_text_is_lost(text: str) -> None:
    words = "".join(segment.text for section in parse_prompt(text).sections for segment in section)
    assert [letter for letter in words if letter in "ab"] == [letter for letter in text if letter in "ab"]


def test_prompts_of_the_largest_size_are_read_at_once() -> None:
    """A pattern that backtracks would take minutes."""
    code = """
from latentgen.errors import InputError
from latentgen.prompts.embeddings import find_embeddings
for piece in (" ", "1", ":", ":1", "(a)", "[a", "<lora:", "\\\\", "BREAK ", "[a:", "[|", "|", "(a:1 "):
    text = piece * (100_000 // len(piece))
    for prompt in ("[:" + text + "x", "<lora:a:" + text + "x>"):
        try:
            find_embeddings(prompt, ["aaaa", "1:1:x", "BREAK"])
        except InputError:
            pass
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Chunks


def lengths(prompt: str, **embeddings: int) -> list[int]:
    return [len(chunk) for chunk in chunk_prompt(parse_prompt(prompt), SMALL, embeddings)]


A, B, COMMA = (SMALL.tokenize(text)[0] for text in ("a", "b", ","))


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("", [0]),
        ("a " * 75, [75]),
        ("a " * 76, [75, 1]),
        ("a " * 151, [75, 75, 1]),
        ("a BREAK b", [1, 1]),
        ("a BREAK", [1]),
        ("BREAK a", [0, 1]),
        ("a BREAK BREAK b", [1, 0, 1]),
        ("a " * 75 + "BREAK a", [75, 1]),
        ("a " * 80 + "BREAK " + "a " * 80, [75, 5, 75, 5]),
        # The last comma of a full chunk is where it ends, if at most 20 places back.
        ("a " * 55 + ", " + "b " * 20, [56, 20]),
        ("a " * 55 + ", " + "b " * 19, [75]),
        ("a " * 54 + ", " + "b " * 21, [75, 1]),
        ("a " * 60 + ", b , " + "b " * 13, [63, 13]),
        ("a " * 74 + ", b", [75, 1]),
        ("a " * 75 + ", b", [75, 2]),
        ("a " * 70 + ", " + "b " * 4 + ", b", [75, 2]),
        # A comma counts within its chunk only.
        ("a " * 70 + ", " + "b " * 80, [71, 75, 5]),
    ],
)
def test_chunks(prompt: str, wanted: list[int]) -> None:
    assert lengths(prompt) == wanted


def test_tokens_keep_their_order_and_weights() -> None:
    chunks = chunk_prompt(parse_prompt("a " * 60 + "(, b:1.5) " + "a " * 20), SMALL, {})
    assert [token for chunk in chunks for token in chunk] == [
        *[Token(A, 1.0)] * 60,
        Token(COMMA, 1.5),
        Token(B, 1.5),
        *[Token(A, 1.0)] * 20,
    ]
    assert [len(chunk) for chunk in chunks] == [61, 21]


def test_segments_are_tokenized_apart() -> None:
    """As in A1111, so that emphasis on half a word parts it."""
    assert [token.id for token in chunk_prompt(parse_prompt("li(ght)"), SMALL, {})[0]] == [
        *SMALL.tokenize("li"),
        *SMALL.tokenize("ght"),
    ]


def test_an_embedding_stands_where_its_name_does() -> None:
    (chunk,) = chunk_prompt(parse_prompt("a (easy-neg:1.5), b"), SMALL, {"Easy-Neg": 3, "other": 2})
    assert chunk == (
        Token(A, 1.0),
        Token(0, 1.5, "Easy-Neg", 0),
        Token(0, 1.5, "Easy-Neg", 1),
        Token(0, 1.5, "Easy-Neg", 2),
        Token(COMMA, 1.0),
        Token(B, 1.0),
    )


def test_an_embedding_is_never_parted() -> None:
    assert lengths("a " * 72 + "emb", emb=3) == [75]
    assert lengths("a " * 73 + "emb a", emb=3) == [73, 4]
    assert lengths("a " * 60 + ", " + "a " * 14 + "emb", emb=70) == [61, 14, 70]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a cat, easy", ["easy"]),
        ("(EASY:1.3)", ["easy"]),
        ("uneasy easygoing easy2 easy_", []),
        ("easy-v2", ["easy-v2"]),
        ("easy-v2, easy", ["easy", "easy-v2"]),
        ("two<cat-toy>s", ["<cat-toy>"]),
        (r"bad\(1\)", ["bad(1)"]),
        ("bad(1)", []),
        ("eaBREAKsy", []),
        ("ea\u017fy", ["easy"]),  # the long s, which is an s to a search without regard to capitals
    ],
)
def test_names_of_embeddings_are_words(prompt: str, found: list[str]) -> None:
    assert find_embeddings(prompt, ["easy", "easy-v2", "<cat-toy>", "bad(1)"]) == found


# Checks


def test_prompts_are_checked_against_a_model() -> None:
    request = complete_request(TINY_MODEL, prompt="a", seed=1)
    for clip_skip in (None, 1, 2):
        check_prompts(replace(request, clip_skip=clip_skip), TINY_MODEL)
    with pytest.raises(RequestError, match=r"clip-skip 3 .*\(1 to 2\)"):
        check_prompts(replace(request, clip_skip=3), TINY_MODEL)
    with pytest.raises(InputError, match="not a scale"):
        check_prompts(replace(request, negative_prompt="<lora:x:y>"), TINY_MODEL)


def test_clip_skip_counts_from_the_models_own_layer() -> None:
    assert [skipped_layers(skip) for skip in (None, 1, 2)] == [0, 0, 1]
