r"""Words that differ from picture to picture: `__animal__` is a line of `animal.txt`, `{red|green}` one of its parts.

    __animal__  __animals/pets__    a line of animal.txt, of animals/pets.txt
    {red|green|}                    red, green or nothing; each as often as the others
    {2::red|blue}                   red twice as often as blue; a line of a file may begin with a weight too
    \{  \}  \|  \__                 the signs themselves; braces without a | are signs anyway

Both nest, in each other and in the files. What is chosen follows from the picture's own seed, so a picture that is
drawn again alone has the same words. The rule is the same on every machine and is kept from version to version:

    u = the first 8 bytes, big-endian, of SHA-256("latentgen-words-1\n" FIELD "\n" SEED "\n" K)
    the choice is the first one up to which the weights sum to more than u / 2^64 of their total

FIELD is `prompt` or `negative_prompt`, SEED and K are written in decimal; K counts the choices of a text from 0 in the
order in which they are met while reading, those within a chosen part right after its own.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate, islice, pairwise, product
from pathlib import Path
from typing import Final, TypeAlias

from latentgen.cli.text_lines import MAX_BYTES, check_printable, numbered_lines
from latentgen.errors import InputError, ModelNotFoundError
from latentgen.request import MAX_PROMPT_BYTES

MAX_NESTING: Final = 16
"""Braces within braces, and files that name files."""
MAX_CHOICES: Final = 10_000
"""In one text, so that lists which name each other many times come to an end."""
MAX_COMBINATIONS: Final = 10_000
_RULE: Final = "latentgen-words-1"
_WEIGHT_UNITS: Final = 10**6
"""Weights have at most six decimals, so that sums of them are exact."""

_TOKEN: Final = re.compile(r"\\(?:__|.)|__(?P<name>[^\s{}|\\]+?)__|[{}|]", re.DOTALL)
_NAME: Final = re.compile(r"[\w-]+(\.[\w-]+)*(/[\w-]+(\.[\w-]+)*)*")
_WEIGHT: Final = re.compile(r"\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)::")

_SEVERAL: Final = re.compile(r"\s*[0-9]*-?[0-9]*\$\$")
"""`{2$$a|b|c}` and `{1-2$$a|b}` of sd-dynamic-prompts."""


@dataclass(frozen=True, slots=True)
class Wildcard:
    """`__name__`."""

    name: str


@dataclass(frozen=True, slots=True)
class Choice:
    """`{a|b}`: parts, and the running sums of their weights in millionths."""

    parts: tuple[Words, ...]
    sums: tuple[int, ...]


Words: TypeAlias = "tuple[str | Wildcard | Choice, ...]"
"""A text, parsed."""


def wildcard_folders(given: Path | None, prompt_file: Path | None, data_home: Path) -> list[Path]:
    """Where `__name__` is looked up, the first place first: in the folder that is given, and else in `wildcards/`
    beside the prompt file, in `wildcards/` here and among latentgen's own data.

    Raises ModelNotFoundError if the given folder is not there.
    """
    if given is not None:
        if not given.is_dir():
            raise ModelNotFoundError(f"--wildcards {given}: there is no such folder")
        return [given]
    beside = [] if prompt_file is None else [prompt_file.parent / "wildcards"]
    return list(dict.fromkeys([*beside, Path("wildcards"), data_home / "wildcards"]))


class Wildcards:
    """Expands texts with the lists of some folders.

    Every name that a text can lead to is looked up before anything is chosen, so a list that is missing is found
    whatever the seed. Raises InputError for one that is not there, leads back to itself or holds no words.
    """

    def __init__(
        self,
        folders: Sequence[Path] = (),
        *,
        combinatorial: bool = False,
        literal: bool = False,
        settled: Collection[str] = (),
    ) -> None:
        """combinatorial: `prompts` gives every combination of a prompt instead of a choice for each seed.
        literal: texts are what they are, braces and underscores too. settled: these are, as a picture's prompts.
        """
        self._folders = folders
        self._combinatorial = combinatorial
        self._literal = literal
        self._settled = settled
        self._lists: dict[str, Choice] = {}

    def prompts(self, text: str, seeds: Sequence[int]) -> list[tuple[str, int]]:
        """A prompt's pictures: their words and seeds."""
        if self._combinatorial and not self._is_literal(text):
            return [(words, seed) for words in self.combinations(text) for seed in seeds]
        return [(self.expand(text, seed), seed) for seed in seeds]

    def expand(self, text: str, seed: int, field: str = "prompt") -> str:
        """The text with every choice made as the rule above says. A text without any is given back as it is."""
        if self._is_literal(text) or not _TOKEN.search(text):
            return text
        choices = _Choices(field, seed)
        parts: list[str] = []
        size = 0
        for part in self._chosen(self._read(text), choices):
            size += len(part)
            if size > MAX_PROMPT_BYTES:
                raise InputError(f"{_quote(text)} expands to more than {MAX_PROMPT_BYTES} characters")
            parts.append(part)
        return "".join(parts)

    def combinations(self, text: str) -> list[str]:
        """Every text that `expand` could give, in the order of the parts and lines; parts of weight 0 are left out."""
        found = self._combined(self._read(text))
        if len(found) > MAX_COMBINATIONS:
            raise InputError(f"{_quote(text)} has more than {MAX_COMBINATIONS} combinations")
        return list(dict.fromkeys(found))

    def _is_literal(self, text: str) -> bool:
        return self._literal or text in self._settled

    def _read(self, text: str) -> Words:
        words = _parse(text)
        self._look_up(words, ())
        return words

    def _chosen(self, words: Words, choices: _Choices) -> Iterator[str]:
        for word in words:
            if isinstance(word, str):
                yield word
            else:
                choice = self._lists[word.name] if isinstance(word, Wildcard) else word
                yield from self._chosen(choices.part_of(choice), choices)

    def _combined(self, words: Words) -> list[str]:
        """All texts of some words; at most one more than are allowed."""
        ways: list[list[str]] = []
        for word in words:
            if isinstance(word, str):
                ways.append([word])
                continue
            choice = self._lists[word.name] if isinstance(word, Wildcard) else word
            weights = (after - before for before, after in zip((0, *choice.sums), choice.sums, strict=False))
            parts = (part for part, weight in zip(choice.parts, weights, strict=True) if weight)
            texts = (each for part in parts for each in self._combined(part))
            ways.append(list(islice(texts, MAX_COMBINATIONS + 1)))
        return ["".join(parts) for parts in islice(product(*ways), MAX_COMBINATIONS + 1)]

    def _look_up(self, words: Words, above: tuple[str, ...]) -> None:
        """Read every list that `words` can lead to. above: the names that led here, which must not come again."""
        for word in words:
            if isinstance(word, Choice):
                for part in word.parts:
                    self._look_up(part, above)
            elif isinstance(word, Wildcard):
                way = (*above, word.name)
                if word.name in above:
                    raise InputError(f"the wildcard {word.name} leads back to itself: {' > '.join(way)}")
                if len(way) > MAX_NESTING:
                    raise InputError(f"wildcards are nested over {MAX_NESTING} deep: {' > '.join(way[:3])} …")
                if word.name not in self._lists:
                    choice = self._read_list(word.name)
                    for part in choice.parts:
                        self._look_up(part, way)
                    self._lists[word.name] = choice

    def _read_list(self, name: str) -> Choice:
        path = self._find(name)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise InputError(f"{path} holds {path.stat().st_size} bytes; the limit is {MAX_BYTES}")
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        lines = numbered_lines(data, str(path))
        if not lines:
            raise InputError(f"{path} holds no words", hint="a choice a line; lines that begin with # are left out")
        check_printable(lines, str(path))
        return _choice([line for _, line in lines], f"{path}: ")

    def _find(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InputError(f"__{name}__ is no wildcard's name", hint=r"two plain underscores are written \__")
        for folder in self._folders:
            path = folder / f"{name}.txt"
            if path.is_file():
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise InputError(f"the wildcard {name} lies outside its folder: {path} is a link")
                return path
        from difflib import get_close_matches

        present = [
            path.relative_to(folder).with_suffix("").as_posix()
            for folder in self._folders
            for path in islice(sorted(folder.glob("**/*.txt")), 10_000)
        ]
        close = get_close_matches(name, present, n=3)
        places = ", ".join(str(folder) for folder in self._folders) or "any folder"
        hint = f"did you mean {' or '.join(close)}?" if close else r"--wildcards names a folder; plain signs: \__"
        raise InputError(f"there is no wildcard {name}.txt in {places}", hint=hint)


class _Choices:
    """The choices of one text for one seed, in order."""

    def __init__(self, field: str, seed: int) -> None:
        self._field = field
        self._stream = f"{_RULE}\n{field}\n{seed}"
        self._made = 0

    def part_of(self, choice: Choice) -> Words:
        if self._made == MAX_CHOICES:
            raise InputError(f"the {self._field} leads to more than {MAX_CHOICES} choices")
        digest = hashlib.sha256(f"{self._stream}\n{self._made}".encode()).digest()
        self._made += 1
        u = int.from_bytes(digest[:8], "big")
        return choice.parts[bisect_right(choice.sums, u * choice.sums[-1] >> 64)]


def _parse(text: str) -> Words:
    """A text in its parts. Braces that do not pair, or hold no |, are signs."""
    pairs, bars = _braces(text)

    def words(start: int, end: int) -> Words:
        found: list[str | Wildcard | Choice] = []
        position = start
        for match in _TOKEN.finditer(text, start, end):
            if match.start() < position:  # within braces that are parsed
                continue
            found.append(text[position : match.start()])
            position = match.end()
            if match["name"]:
                found.append(Wildcard(match["name"]))
            elif match.start() in bars:
                close = pairs[match.start()]
                edges = [match.start(), *bars[match.start()], close]
                found.append(_choice_of([(a + 1, b) for a, b in pairwise(edges)]))
                position = close + 1
            else:
                found.append(_plain(match[0]))
        found.append(text[position:end])
        return tuple(each for each in found if each != "")

    def _choice_of(spans: list[tuple[int, int]]) -> Choice:
        weights: list[int] = []
        parts: list[Words] = []
        for start, end in spans:
            if several := _SEVERAL.match(text, start, end):
                raise InputError(
                    f"{_quote(text)}: {several[0].strip()} chooses several parts, which is not supported",
                    hint=r"{red|blue} chooses one; a plain brace is written \{",
                )
            weight, start = _weight(text, start, end)
            while start < end and text[start] == " ":
                start += 1
            while end > start and text[end - 1] == " ":
                end -= 1
            weights.append(weight)
            parts.append(words(start, end))
        return Choice(tuple(parts), _sums(weights, text[spans[0][0] - 1 : spans[-1][1] + 1]))

    return words(0, len(text))


def _braces(text: str) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Where each brace that opens a choice closes, and where its bars are, by its position."""
    pairs: dict[int, int] = {}
    bars: dict[int, list[int]] = {}
    opened: list[tuple[int, list[int]]] = []
    for match in _TOKEN.finditer(text):
        if match[0] == "{":
            opened.append((match.start(), []))
        elif match[0] == "|" and opened:
            opened[-1][1].append(match.start())
        elif match[0] == "}" and opened:
            start, found = opened.pop()
            if found:
                pairs[start], bars[start] = match.start(), found
        if len(opened) > MAX_NESTING:
            raise InputError(f"{_quote(text)}: braces are nested over {MAX_NESTING} deep")
    return pairs, bars


def _choice(lines: Sequence[str], where: str) -> Choice:
    """The lines of a file."""
    weights, parts = [], []
    for line in lines:
        weight, start = _weight(line, 0, len(line))
        weights.append(weight)
        parts.append(_parse(line[start:].strip()))
    return Choice(tuple(parts), _sums(weights, where))


def _weight(text: str, start: int, end: int) -> tuple[int, int]:
    """The weight at the beginning of a part in millionths, and where its words begin."""
    match = _WEIGHT.match(text, start, end)
    if match is None:
        return _WEIGHT_UNITS, start
    return int(Decimal(match[1]) * _WEIGHT_UNITS), match.end()


def _sums(weights: Sequence[int], where: str) -> tuple[int, ...]:
    if not any(weights):
        raise InputError(f"{_quote(where)} all weights are 0: there is nothing to choose")
    return tuple(accumulate(weights))


def _plain(token: str) -> str:
    r"""What a sign that opens nothing stands for: `\{` is a brace, any other backslash is the prompt's own business."""
    return token[1:] if token in (r"\{", r"\}", r"\|", r"\__") else token


def _quote(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(text[:60])[:-1] + "…'"
