"""What the signs in a prompt mean: A1111's emphasis, BREAK and LoRA tags. Torch-free.

    (word)          1.1 times the weight; ((word)) 1.21 times
    [word]          the weight divided by 1.1
    (word:1.3)      1.3 times
    \\( \\) \\[ \\] \\\\   the sign itself
    BREAK           what follows begins in a new chunk
    <lora:name:0.8> a LoRA and its scale; not part of the words

Brackets nest; one that is never closed reaches to the end of the prompt, and one that was never opened is a sign like
any other. A backslash before anything else is left out.
Source: AUTOMATIC1111/stable-diffusion-webui, wiki "Features", and the examples in `modules/prompt_parser.py`.
One difference: BREAK parts a prompt within brackets too, where A1111 reads it as the word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

from latentgen.errors import InputError

EMPHASIS: Final = 1.1
MAX_NESTING: Final = 64
MAX_WEIGHT: Final = 1000.0
"""Far beyond what gives pictures (0 to 2), and far below what no longer is a number after the text encoder."""

_PIECE: Final = re.compile(
    r"""\\(?P<escaped>[()\[\]\\]?)
      | (?P<open>[(\[])
      | :\s*(?P<weight>[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++))\s*\)
      | (?P<close>[)\]])
      | [^\\()\[\]:]+ | :""",
    re.VERBOSE,
)
_BREAK: Final = re.compile(r"\bBREAK\b")
_LORA: Final = re.compile(r"<lora:([^<>]+)>")
_UNSUPPORTED: Final = re.compile(
    r"""(?<!\\)\[[^\[\]\\]*:\s*(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)\s*\]   # [from:to:when], [to:when], [from::when]
      | (?<!\\)\[[^\[\]\\|]*\|[^\[\]\\]*\]                                # [one|other]
      | \bAND\b""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Segment:
    """Words that share a weight."""

    text: str
    weight: float
    """What their part of the context is multiplied with; 1 for words without emphasis."""


class LoRATag(NamedTuple):
    """`<lora:name:scale>`."""

    name: str
    scale: float


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt, taken apart."""

    text: str
    """As it was written, without the LoRA tags."""
    sections: tuple[tuple[Segment, ...], ...]
    """What stands between the BREAKs: at least one section, which may hold no words."""
    loras: tuple[LoRATag, ...]
    """In the order of the prompt; one name may stand there several times."""
    unsupported: tuple[str, ...]
    """Prompt editing `[a:b:0.5]`, alternation `[a|b]` and AND, as written: A1111's, and read as words here."""


def parse_prompt(prompt: str) -> ParsedPrompt:
    """Take a prompt apart. Raises InputError for a LoRA tag or a weight that cannot be used, or bottomless nesting.

    '(a [cat]:1.2), oil' -> one section: 'a ' 1.2, 'cat' 1.0909, ', oil' 1.
    """
    text = _LORA.sub("", prompt)
    return ParsedPrompt(
        text=text,
        sections=_sections(text),
        loras=tuple(_read_lora(match[1]) for match in _LORA.finditer(prompt)),
        unsupported=find_unsupported(prompt),
    )


def find_unsupported(prompt: str) -> tuple[str, ...]:
    """`ParsedPrompt.unsupported`, also of a prompt that cannot be parsed."""
    return tuple(dict.fromkeys(_UNSUPPORTED.findall(_LORA.sub("", prompt))))


def escape(text: str) -> str:
    """The prompt that means `text` to the letter: every sign of the syntax is escaped.

    BREAK and AND are put in small letters, which are the same tokens; a tag is opened by a backslash that is then left
    out, so that it is words.
    """
    text = re.sub(r"[\\()\[\]]", r"\\\g<0>", text)
    text = re.sub(r"\b(BREAK|AND)\b", lambda match: match[0].lower(), text)
    return text.replace("<lora:", "<\\lora:")


def _sections(text: str) -> tuple[tuple[Segment, ...], ...]:
    sections: list[list[tuple[str, float]]] = [[]]
    for words, weight in _weigh(text):
        if words is None:
            sections.append([])
        elif words:
            sections[-1].append((words, weight))
    return tuple(
        tuple(
            Segment("".join(words for words, _ in pieces), weight)
            for weight, pieces in groupby(section, key=lambda piece: piece[1])
        )
        for section in sections
    )


def _weigh(text: str) -> list[tuple[str | None, float]]:
    """The text in pieces with their weights; a piece that is None is a BREAK."""
    pieces: list[str | None] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for match in _PIECE.finditer(text):
        sign, weight = match["open"] or match["close"], match["weight"]
        if match["escaped"] is not None:
            pieces.append(match["escaped"])
        elif match["open"]:
            opened[sign].append(len(pieces))
            if len(opened[sign]) > MAX_NESTING:
                raise InputError(
                    f"the prompt nests more than {MAX_NESTING} brackets {sign}", hint=f"\\{sign} is the sign itself"
                )
        elif weight is not None and opened["("]:
            multiply(opened["("].pop(), float(weight))
        elif sign == ")" and opened["("]:
            multiply(opened["("].pop(), EMPHASIS)
        elif sign == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / EMPHASIS)
        else:
            first, *others = _BREAK.split(match[0])
            pieces.append(first)
            for words in others:
                pieces += [None, words]
        weights += [1.0] * (len(pieces) - len(weights))
    for start in opened["("]:
        multiply(start, EMPHASIS)
    for start in opened["["]:
        multiply(start, 1 / EMPHASIS)
    for words, weight in zip(pieces, weights, strict=True):
        if not abs(weight) <= MAX_WEIGHT:  # 0 times infinity is no number
            raise InputError(f"the prompt gives {words!r} the weight {weight:g}", hint=f"at most {MAX_WEIGHT:g}")
    return list(zip(pieces, weights, strict=True))


def _read_lora(fields: str) -> LoRATag:
    """`name`, `name:scale`, or `name:scale:scale` with A1111's two scales, of the text encoder and the U-Net."""
    name, *scales = (field.strip() for field in fields.split(":"))
    name = name.removesuffix(".safetensors")
    tag = f"<lora:{fields}>"
    if not name or len(scales) > 2:
        raise InputError(f"the prompt's {tag} is not a LoRA and its scale", hint="<lora:name:0.8>")
    numbers: list[float] = []
    for scale in scales:
        if not re.fullmatch(r"[+-]?(?:[0-9]++\.?[0-9]*|\.[0-9]+)", scale):
            raise InputError(f"the prompt's {tag}: {scale!r} is not a scale", hint="for instance <lora:name:0.8>")
        numbers.append(float(scale))
    if len(set(numbers)) == 2:
        raise InputError(
            f"the prompt's {tag} scales text encoder and U-Net apart, which is not supported",
            hint=f"one scale for both: <lora:{name}:{scales[-1]}>",
        )
    return LoRATag(name, numbers[0] if numbers else 1.0)
