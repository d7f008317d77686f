"""CLIP's tokenizer: byte-level BPE over lower-cased text, 77 tokens a prompt (arXiv:2103.00020, section 2.4).

The merging runs in the `tokenizers` library, built from the `vocab.json` and `merges.txt` that every CLIP folder
carries, and gives the ids of `transformers.CLIPTokenizer`. Two differences, both on purpose: a control token spelled
out inside a prompt is plain text (`<|startoftext|>` must not restart a sentence, and the `!` that SD 2.x pads with must
stay an exclamation mark), and nothing need be cut: `tokenize` gives all of a text, for `prompts/chunks.py` to part.

torch is imported by `encode` alone, so that prompts can be looked at without it.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from latentgen.errors import ConfigError, InputError, ModelLoadError
from latentgen.jsonfile import read_json, write_json, write_text
from latentgen.models.added_tokens import LISTED, AddedToken, read_added_tokens

if TYPE_CHECKING:
    from torch import Tensor

CONTEXT_LENGTH: Final = 77
"""Tokens that the text encoder reads at once, the two specials included."""
CHUNK_LENGTH: Final = CONTEXT_LENGTH - 2
"""What remains for the words."""

BOS: Final = "<|startoftext|>"
EOS: Final = "<|endoftext|>"

PUBLISHED_MERGES: Final = 48_894
"""Merges of CLIP's vocabulary: 49,408 entries less 2 * 256 byte symbols and two specials (`simple_tokenizer.py`)."""

_END_OF_WORD: Final = "</w>"
_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What BPE may not merge across: English contractions, runs of letters, single digits, runs of anything else."""


class Tokenizer:
    """Text to token ids and back, with one CLIP vocabulary.

    `vocab` maps token to id, `merges` are pairs in the order they were learnt, `added` go on from the vocabulary's ids
    or are in it (ids 0 .. n-1 in all); `bos`, `eos` and `pad` are among the tokens.
    Raises ModelLoadError if they do not form a byte-level vocabulary that can encode any text.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        bos: str = BOS,
        eos: str = EOS,
        pad: str = EOS,
        added: Sequence[AddedToken] = (),
        source: str = "tokenizer",
    ) -> None:
        symbols = byte_symbols()
        ids = {**vocab, **{token.content: token.id for token in added}}
        required = [*symbols, *(symbol + _END_OF_WORD for symbol in symbols), bos, eos, pad]
        missing = [token for token in required if token not in ids]
        if missing:
            raise ModelLoadError(
                f"{source}: the vocabulary lacks {len(missing)} of CLIP's base tokens, such as {missing[0]!r}"
            )
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise ModelLoadError(f"{source}: the vocabulary's ids are not 0..{len(vocab) - 1}, each once")
        if sorted(ids.values()) != list(range(len(ids))):
            named = ", ".join(f"{token.content} {token.id}" for token in added if vocab.get(token.content) != token.id)
            raise ModelLoadError(
                f"{source}: the ids of added tokens do not go on from the vocabulary's: {named}",
                hint=f"the first one's is {len(vocab)}",
            )
        self._vocab = dict(vocab)
        self._merges = list(merges)
        self._tokens = {number: token for token, number in self._vocab.items()}
        self._bytes = {symbol: number for number, symbol in zip(_byte_order(), symbols, strict=True)}
        self.bos, self.eos, self.pad = bos, eos, pad
        self.bos_token_id = ids[bos]
        self.eos_token_id = ids[eos]
        self.pad_token_id = ids[pad]
        self.comma_token_id = self._vocab["," + _END_OF_WORD]
        self.vocab_size = len(ids)
        """With the added tokens."""
        controls = (bos, eos, pad)
        self.added = tuple(token for token in added if token.content not in vocab or token.content not in controls)
        """Without the control tokens in the vocabulary, which most folders list as well."""
        self._added = {token.id: token.content for token in self.added}
        try:
            # An added token's entry tells the library its id; no merge makes one.
            model = BPE(ids, self._merges, end_of_word_suffix=_END_OF_WORD)
        except Exception as error:  # noqa: BLE001  the library raises bare Exception for a merge outside the vocabulary
            raise ModelLoadError(f"{source}: merges and vocabulary do not belong together: {error}") from None
        self._backend = Backend(model)
        self._backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        # After the normaliser, which is applied to them.
        self._backend.add_tokens([token.for_backend() for token in self.added if token.content not in controls])

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Open a `tokenizer/` folder: vocab.json and merges.txt, or the tokenizer.json that newer transformers write.

        Which token pads is read from the folder as transformers does: `<|endoftext|>` in SD 1.x, `!` in SD 2.x; so are
        added tokens. Raises ModelLoadError naming the file that is missing or wrong.
        """
        if (folder / "vocab.json").exists() or not (folder / "tokenizer.json").exists():
            vocab: dict[str, Any] = read_json(folder / "vocab.json")
            merges = _parse_merges(folder / "merges.txt")
        else:
            vocab, merges = _read_single_file(folder / "tokenizer.json")
        if any(type(number) is not int for number in vocab.values()):
            raise ModelLoadError(f"{folder}: the vocabulary must map every token to an integer")
        config = _read_config(folder)
        specials = _read_specials(folder, config)
        return cls(
            cast("dict[str, int]", vocab),
            merges,
            bos=specials.get("bos_token", BOS),
            eos=specials.get("eos_token", EOS),
            pad=specials.get("pad_token", specials.get("eos_token", EOS)),
            added=read_added_tokens(folder, config),
            source=str(folder),
        )

    @classmethod
    def published(cls, merges: int | None = None, *, pad: str = EOS) -> Tokenizer:
        """CLIP's own vocabulary, or the same BPE cut to its first `merges` merges.

        All 256 bytes are symbols of either, so the smaller one still encodes any text, only in more pieces: 7680 merges
        give 8194 entries (2 * 256 byte symbols, the merges, bos 8192 and eos 8193).
        Raises ConfigError if there are fewer merges than asked for.
        """
        pairs = _published_merges()
        count = len(pairs) if merges is None else merges
        if not 0 <= count <= len(pairs):
            raise ConfigError(f"CLIP's vocabulary has {len(pairs)} merges; cannot take {count}")
        pairs = pairs[:count]
        symbols = byte_symbols()
        tokens = [*symbols, *(symbol + _END_OF_WORD for symbol in symbols), *(a + b for a, b in pairs), BOS, EOS]
        vocab = {token: number for number, token in enumerate(tokens)}
        return cls(vocab, pairs, pad=pad, source="CLIP's published vocabulary")

    def save(self, folder: Path) -> None:
        """Write the files from which `from_folder` and `transformers.CLIPTokenizer` open the same tokenizer.

        They are four, and `added_tokens.json` for transformers before 4.33 if there are such tokens.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "vocab.json", self._vocab)
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in self._merges)]
        write_text(folder / "merges.txt", "\n".join(lines) + "\n")
        specials = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad, "unk_token": self.eos}
        write_json(folder / "special_tokens_map.json", specials)
        if self.added:
            write_json(folder / "added_tokens.json", {token.content: token.id for token in self.added})
        write_json(
            folder / "tokenizer_config.json",
            {
                **specials,
                "add_prefix_space": False,
                "do_lower_case": True,
                "errors": "replace",
                "model_max_length": CONTEXT_LENGTH,
                "tokenizer_class": "CLIPTokenizer",
                **({LISTED: {str(token.id): token.to_json() for token in self.added}} if self.added else {}),
            },
        )

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text of any length, without specials. Raises InputError if it holds a lone surrogate."""
        _check_text(text)
        return self._backend.encode(text, add_special_tokens=False).ids

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """At most 75 ids as the text encoder takes them: bos, the ids, eos, padding; 77 in all."""
        padding = [self.pad_token_id] * (CHUNK_LENGTH - len(ids))
        return [self.bos_token_id, *ids, self.eos_token_id, *padding]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Token ids of texts that are one chunk each: (B, 77) int64 on the CPU.

        A longer text keeps its first 75 tokens, as captions do in CLIP.
        Raises InputError if a text holds a lone surrogate.
        """
        import torch

        rows = [self.wrap(self.tokenize(text)[:CHUNK_LENGTH]) for text in texts]
        return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), CONTEXT_LENGTH)

    def spell(self, token_id: int) -> str:
        """One token as text; a space after it ends a word. What is no whole character is U+FFFD."""
        if token_id in self._added:
            return f"{self._added[token_id]} "
        token = self._tokens[token_id]
        text = bytes(self._bytes[symbol] for symbol in token.removesuffix(_END_OF_WORD)).decode(errors="replace")
        return f"{text} " if token.endswith(_END_OF_WORD) else text

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of a row of ids, lower-cased, words and signs parted by one space; ends at the first eos.

        Bytes that are no UTF-8 (a character cut in two) become U+FFFD. Raises InputError for an id outside 0..n-1.
        """
        numbers = ids if isinstance(ids, Sequence) else cast("list[int]", ids.tolist())
        data = bytearray()
        for number in numbers:
            if number == self.eos_token_id:
                break
            if number == self.bos_token_id:
                continue
            if number in self._added:
                data += f"{self._added[number]} ".encode()
                continue
            if number not in self._tokens:
                raise InputError(f"token id {number} is outside the vocabulary of {self.vocab_size}")
            token = self._tokens[number]
            data.extend(self._bytes[symbol] for symbol in token.removesuffix(_END_OF_WORD))
            if token.endswith(_END_OF_WORD):
                data += b" "
        return data.decode("utf-8", errors="replace").strip(" ")


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte, in the vocabulary's order (GPT-2's `bytes_to_unicode`)."""
    return [chr(byte) if rank < 188 else chr(256 + rank - 188) for rank, byte in enumerate(_byte_order())]


def _byte_order() -> list[int]:
    """Bytes by id: first the 188 that print as themselves in Latin-1, then the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + sorted(set(range(256)) - set(printable))


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"surrogate U+{code:04X}"
        raise InputError(
            f"the prompt is not valid text: {what} at position {error.start}", hint="pass it as UTF-8"
        ) from None


def _published_merges() -> list[tuple[str, str]]:
    """CLIP's merges from the vocabulary file inside the installed open_clip (MIT), without importing open_clip."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError("CLIP's vocabulary comes with open_clip_torch, which is not installed")
    path = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return [(a, b) for a, b in (line.split() for line in lines[1 : PUBLISHED_MERGES + 1])]


def _parse_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path} is missing", hint="the model folder is incomplete; copy or download it again"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from None
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split()
        if len(pair) != 2:
            raise ModelLoadError(f"{path}, line {number}: expected two symbols, found {len(pair)}")
        merges.append((pair[0], pair[1]))
    return merges


def _read_single_file(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Vocabulary and merges out of a `tokenizer.json`; the rest of it restates what is fixed here."""
    model = read_json(path).get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("end_of_word_suffix") != _END_OF_WORD:
        raise ModelLoadError(f"{path}: not a CLIP tokenizer (BPE with the suffix {_END_OF_WORD})")
    try:
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        return dict(model["vocab"]), [(str(a), str(b)) for a, b in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path}: its vocabulary or merges are malformed: {error}") from None


def _read_config(folder: Path) -> dict[str, Any]:
    """As in transformers, special_tokens_map.json wins unless the config lists its added tokens."""
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    extra = folder / "special_tokens_map.json"
    if LISTED not in config and extra.exists():
        config = {**config, **read_json(extra)}
    return config


def _read_specials(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """bos, eos and pad."""
    specials: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        value = config.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            specials[key] = content
        elif content is not None:
            raise ModelLoadError(f"{folder / 'tokenizer_config.json'}: {key} must be a token, not {content!r}")
    return specials
