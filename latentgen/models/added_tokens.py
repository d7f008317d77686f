"""Tokens that were added to a tokenizer's vocabulary, such as the `<cat-toy>` that an embedding was learnt for.

They are found whole in a text, never merged of pieces. transformers has written them to three files in its time:
`added_tokens.json`, which says ids alone, `tokenizer.json`, and since 4.33 `added_tokens_decoder` in the tokenizer's
config, which alone counts where it is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

from tokenizers import AddedToken as BackendToken

from latentgen.errors import ModelLoadError
from latentgen.jsonfile import read_json

LISTED: Final = "added_tokens_decoder"
"""Of `tokenizer_config.json`: id -> token."""
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "special")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """One of them, as the `tokenizers` library has it."""

    id: int
    content: str
    single_word: bool = False
    """Found only where no letter, digit or `_` is next to it."""
    lstrip: bool = False
    """Takes in the white space before it."""
    rstrip: bool = False
    normalized: bool = True
    """Found in small letters and in capitals; else only as it is spelled."""
    special: bool = False

    def to_json(self) -> dict[str, Any]:
        """As it is listed under its id."""
        return {name: value for name, value in asdict(self).items() if name != "id"}

    def for_backend(self) -> BackendToken:
        return BackendToken(**self.to_json())


def read_added_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """What a `tokenizer/` folder lists, by id, whether or not it is in the vocabulary too.

    `config` is its `tokenizer_config.json`, with the special tokens. Raises ModelLoadError for what is no such list.
    """
    found: dict[int, AddedToken] = {}
    for path, number, said in _entries(folder, config):
        token = _read(path, number, said)
        found[token.id] = token
    return tuple(found[number] for number in sorted(found))


def _entries(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[Path, object, object]]:
    """File, id and what is said of each."""
    if LISTED in config:
        path, listed = folder / "tokenizer_config.json", config[LISTED]
        if not isinstance(listed, dict):
            raise ModelLoadError(f"{path}: {LISTED} is no object")
        yield from ((path, number, said) for number, said in cast("dict[str, object]", listed).items())
        return
    path = folder / "added_tokens.json"
    if path.exists():
        yield from ((path, number, {"content": content}) for content, number in read_json(path).items())
    path = folder / "tokenizer.json"
    if path.exists():
        listed = read_json(path).get("added_tokens", [])
        for said in cast("list[object]", listed) if isinstance(listed, list) else []:
            yield path, cast("dict[str, object]", said).get("id") if isinstance(said, dict) else None, said


def _read(path: Path, number: object, said: object) -> AddedToken:
    values = cast("dict[str, object]", said) if isinstance(said, dict) else {}
    content, flags = values.get("content"), {name: values.get(name, False) for name in _FLAGS}
    flags["normalized"] = values.get("normalized", not flags["special"])
    is_token = isinstance(content, str) and content != "" and all(isinstance(flag, bool) for flag in flags.values())
    if not is_token or not re.fullmatch(r"[0-9]{1,9}", str(number)):
        raise ModelLoadError(f"{path}: no added token: {str(number)[:40]} = {str(said)[:80]}")
    return AddedToken(id=int(str(number)), content=str(content), **cast("dict[str, bool]", flags))
