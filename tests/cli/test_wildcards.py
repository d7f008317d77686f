"""`__animal__` and `{red|green}` in prompts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from latentgen.cli.wildcards import Wildcards, wildcard_folders
from latentgen.errors import InputError, ModelNotFoundError
from tests.cli.conftest import Cli


def lists(folder: Path, **files: str) -> Wildcards:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Wildcards([folder])


def u(field: str, seed: int, k: int) -> float:
    """The rule's number in [0, 1), written out again."""
    digest = hashlib.sha256(f"latentgen-words-1\n{field}\n{seed}\n{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def test_the_rule_is_the_one_that_is_written_down() -> None:
    for seed in range(50):
        first, second = ("a", "b", "c", "d")[int(u("prompt", seed, 0) * 4)], "xyz"[int(u("prompt", seed, 1) * 3)]
        assert Wildcards().expand("{a|b|c|d} {x|y|z}", seed) == f"{first} {second}"
        inner = "{a|b}" if u("prompt", seed, 0) < 2 / 3 else "c"
        inner = "ab"[int(u("prompt", seed, 1) * 2)] if inner != "c" else inner
        assert Wildcards().expand("{2::{a|b}|c}", seed) == inner
    assert Wildcards().expand("{a|b|c|d}", 1, "negative_prompt") == "abcd"[int(u("negative_prompt", 1, 0) * 4)]


def test_the_words_of_a_seed_never_change(tmp_path: Path) -> None:
    """Written down once: another version that gave others would not redraw what this one drew."""
    words = lists(tmp_path, animal="fox\nhen\nowl\n", colour="red\ngreen\nblue\n")
    text = "a {2::small|large} __colour__ __animal__, __colour__ sky"
    assert [words.expand(text, seed) for seed in (0, 1, 42, 2**32 - 1)] == [
        "a large green hen, green sky",
        "a small blue owl, red sky",
        "a large red fox, green sky",
        "a large blue hen, blue sky",
    ]


def test_weights_are_shares() -> None:
    drawn = Counter(Wildcards().expand("{3::red|blue|0::green|0.5::x}", seed) for seed in range(4000))
    assert set(drawn) == {"red", "blue", "x"}
    assert drawn["red"] / 4000 == pytest.approx(3 / 4.5, abs=0.03)
    assert drawn["x"] / 4000 == pytest.approx(0.5 / 4.5, abs=0.03)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("a {plain} brace", "a {plain} brace"),
        (r"\{a|b\}", "{a|b}"),
        (r"{a\|b|a\|b}", "a|b"),
        (r"\__init__", "__init__"),
        (r"\(word\) \\ (x:1.2) [y] <lora:z:0.5>", r"\(word\) \\ (x:1.2) [y] <lora:z:0.5>"),
        ("({ red | red }:1.3)", "(red:1.3)"),
        ("{a|a", "{a|a"),
        ("a|b} c", "a|b} c"),
        ("a__b", "a__b"),
        ("{x{y}|x{y}}", "x{y}"),
        ("nothing {|}here", "nothing here"),
    ],
)
def test_signs_that_open_nothing_are_signs(text: str, expanded: str) -> None:
    assert {Wildcards().expand(text, seed) for seed in range(8)} == {expanded}


def test_lists_nest_and_lie_in_folders(tmp_path: Path) -> None:
    words = lists(tmp_path, pets__dog="# only one\n\n  a __colour__ dog, {big|big} \n", colour="2::red\n")
    assert words.expand("__pets/dog__!", 5) == "a red dog, big!"


def test_the_first_place_that_has_a_list_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    beside, here, home = tmp_path / "p" / "wildcards", tmp_path / "wildcards", tmp_path / "data"
    lists(beside, a="beside"), lists(here, a="here", b="here"), lists(home / "wildcards", a="home", c="home")
    words = Wildcards(wildcard_folders(None, tmp_path / "p" / "prompts.txt", home))
    assert words.expand("__a__ __b__ __c__", 0) == "beside here home"
    assert Wildcards(wildcard_folders(here, None, home)).expand("__a__", 0) == "here"
    with pytest.raises(ModelNotFoundError, match="there is no such folder"):
        wildcard_folders(tmp_path / "none", None, home)


def test_every_combination_is_listed_in_order(tmp_path: Path) -> None:
    words = lists(tmp_path, colour="red\n__light__ blue\n", light="{pale|0::lost|deep}\n")
    assert words.combinations("a __colour__ {fox|hen}") == [
        "a red fox",
        "a red hen",
        "a pale blue fox",
        "a pale blue hen",
        "a deep blue fox",
        "a deep blue hen",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("__animl__", "there is no wildcard animl.txt in .* \\(did you mean animal"),
        ("{red|__animl__}", "there is no wildcard animl.txt"),
        ("__../secret__", "is no wildcard's name"),
        ("__/etc/passwd__", "is no wildcard's name"),
        ("__.__", "is no wildcard's name"),
        ("__link__", "lies outside its folder"),
        ("__a__", "leads back to itself: a > b > a"),
        ("__empty__", "holds no words"),
        ("__utf16__", "UTF-16"),
        ("__escape__", "line 2 holds the control character U\\+001B at character 1"),
        ("{0::a|0::b}", "all weights are 0"),
        ("{2$$a|b|c}", r"2\$\$ chooses several parts, which is not supported"),
        ("{x| {1-2$$a|b}}", r"1-2\$\$ chooses several parts"),
        ("{" * 17 + "a|b" + "}" * 17, "braces are nested over 16 deep"),
        ("__long__", "expands to more than 100000"),
        ("__many__", "leads to more than 10000 choices"),
    ],
)
def test_what_cannot_be_expanded_is_named_whatever_the_seed(text: str, line: str, tmp_path: Path) -> None:
    folder = tmp_path / "words"
    words = lists(
        folder, animal="fox", a="x\ny\n__b__\n", b="__a__", empty="# no\n", escape="a\nb\x1bc\n",
        long="__l1__ " * 9, l1="__l2__ " * 99, l2="word " * 99, many="__m1__" * 999, m1="__m2__" * 99, m2="{|}",
    )  # fmt: skip
    (folder / "utf16.txt").write_text("fox", encoding="utf-16")
    (tmp_path / "outside.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    for seed in (1, 2, 3):
        with pytest.raises(InputError, match=line):
            words.expand(text, seed)


def test_too_many_combinations_are_refused(tmp_path: Path) -> None:
    words = lists(tmp_path, n="\n".join(str(i) for i in range(100)))
    assert len(words.combinations("__n__ __n__")) == 10_000
    with pytest.raises(InputError, match="more than 10000 combinations"):
        words.combinations("__n__ __n__ {a|b}")


# The command


def plan(cli: Cli, *arguments: str | Path) -> list[dict[str, object]]:
    outcome = cli("generate", *arguments, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    return [json.loads(line)["request"] for line in outcome.out.splitlines()]


def test_a_picture_of_many_has_the_words_of_its_seed_alone(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    lists(tmp_path / "wildcards", animal="\n".join(f"animal {i}" for i in range(50)))
    text = ("a __animal__", "-m", tiny_model, "--negative", "{fog|rain}")
    many = plan(cli, *text, "-s", "10", "-n", "6")
    assert len({str(request["prompt"]) for request in many}) > 3
    assert many == [request for seed in range(10, 16) for request in plan(cli, *text, "-s", str(seed))]


def test_combinations_are_pictures(cli: Cli, tiny_model: Path) -> None:
    drawn = plan(cli, "a {red|blue} {fox|hen}", "-m", tiny_model, "-s", "3", "-n", "2", "--combinatorial")
    assert [(request["prompt"], request["seed"]) for request in drawn] == [
        (f"a {colour} {animal}", seed) for colour in ("red", "blue") for animal in ("fox", "hen") for seed in (3, 4)
    ]


def test_a_drawn_picture_holds_its_own_words_and_replays(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    lists(tmp_path / "w", animal="a {fox|fox}\n")
    assert cli("generate", "__animal__ in {rain|rain}", "-m", tiny_model, "--wildcards", "w", "-o", "a.png").code == 0
    (tmp_path / "w" / "animal.txt").unlink()
    assert '"prompt": "a fox in rain"' in cli("info", "a.png", "--json").out
    assert cli("replay", "a.png", "--verify", "-m", tiny_model).code == 0


def test_a_bad_wildcard_names_the_line_of_the_prompt_file(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a fox\na __non__\n")
    outcome = cli("generate", "--prompts", "p.txt", "-m", tiny_model)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: p.txt line 2: there is no wildcard non.txt in wildcards")
