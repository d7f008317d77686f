"""Where pictures go: file, folder or template, checked before the work and never replacing what is there unasked."""

from __future__ import annotations

import datetime
import os
import re
import stat
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Literal, TextIO

from latentgen.cli.console import STDOUT
from latentgen.errors import InputError, RuntimeFailure
from latentgen.request import GenerationRequest

DEFAULT_FOLDER = "outputs"
DEFAULT_NAME = "{date}-{n:05}-{seed}"
EXTENSIONS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""File name endings, and the formats of `images/files.py`."""
FIELDS = ("date", "n", "seed", "prompt_slug")
MAX_SLUG = 60


class PictureFiles:
    """The files of one run, all in `folder`; with `-` the bytes of one picture on stdout.

    `format` is the Pillow name of the kind that they all are.

    Raises InputError if the path or template cannot be one.
    """

    def __init__(self, output: str | None, format: str | None, *, overwrite: bool = False) -> None:
        if format is not None and format.lower() not in EXTENSIONS:
            raise InputError(f"--format {format} is not known", hint="png, jpg or webp")
        self.to_stdout = output == STDOUT
        if self.to_stdout and not _takes_bytes(sys.stdout):
            raise InputError(
                "--output - would write a picture's bytes to a terminal", hint="send them on: -o - > a.png"
            )
        path = Path(DEFAULT_FOLDER if output is None else output)
        is_folder = output is None or output.endswith(("/", os.sep)) or _kind(path) == "folder" or not path.suffix
        ending = (format or "png").lower() if is_folder else path.suffix[1:].lower()
        if ending not in EXTENSIONS:
            raise InputError(f"--output {output}: {path.suffix} is not a picture format", hint=".png, .jpg or .webp")
        if format is not None and EXTENSIONS[format.lower()] != EXTENSIONS[ending]:
            raise InputError(f"--output {output} and --format {format} contradict each other")
        self.format = EXTENSIONS[ending]
        self.overwrite = overwrite
        self._may_create_folder = is_folder
        self.folder = path if is_folder else path.parent
        self._template = f"{DEFAULT_NAME}.{ending}" if is_folder else path.name
        self._date = datetime.date.today().isoformat()
        self._numbered = "n" in _template_fields(self._template)
        self._next, self._stride = 1, 1

    def check(self, requests: Sequence[GenerationRequest]) -> list[Path]:
        """The files these requests will most likely become. Nothing is written.

        Raises InputError if a folder is missing or not writable, a file exists, or two pictures would share a name.
        """
        if self.to_stdout:
            if len(requests) > 1:
                raise InputError(f"--output - is for one picture, not {len(requests)}", hint="name a folder")
            return [Path(STDOUT)] * len(requests)
        self._check_folder()
        if self._numbered:
            self._next = 1 + self._last_number()
        paths = [self._path(request, self._next + i) for i, request in enumerate(requests)]
        for path in paths:
            if _kind(path) == "folder":
                raise InputError(f"--output {path} is a folder")
            if _kind(path) is not None and not self.overwrite:
                raise InputError(f"--output {path} exists", hint="--overwrite replaces it")
        if len(set(paths)) < len(paths):
            raise InputError(
                f"--output {self._template} names one file for {'' if len(set(paths)) == 1 else 'several of '}"
                f"{len(paths)} pictures",
                hint=f"put {'{n}' if '{seed' in self._template else '{n} or {seed}'} into the name, or name a folder",
            )
        return paths

    def save(self, request: GenerationRequest, data: bytes) -> Path:
        """Write one picture under the next free name. Raises InputError if its name was taken meanwhile."""
        if self.to_stdout:
            sys.stdout.buffer.write(data)
            return Path(STDOUT)
        from latentgen.images.files import write_file

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RuntimeFailure(f"the folder {self.folder} could not be made: {error.strerror}") from None
        while True:
            path = self._path(request, self._next)
            self._next += self._stride
            try:
                write_file(path, data, overwrite=self.overwrite)
            except FileExistsError:
                if not self._numbered:
                    raise InputError(f"--output {path} exists", hint="--overwrite replaces it") from None
            else:
                return path

    def take_turns(self, index: int, count: int) -> None:
        """Be one of so many processes, which take numbers in turn. Comes after `check`."""
        self._next += index
        self._stride = count

    def skip(self) -> None:
        """Leave out the next number: its picture failed."""
        self._next += self._stride

    def _path(self, request: GenerationRequest, n: int) -> Path:
        values = {"date": self._date, "n": n, "seed": request.seed, "prompt_slug": prompt_slug(request.prompt)}
        return self.folder / self._template.format(**values)

    def _check_folder(self) -> None:
        if _kind(self.folder) is None and re.search(r"\{\w+\}", str(self.folder)):
            raise InputError(
                f"--output: {self.folder} is a folder", hint="fields such as {date} are for the file's name"
            )
        if _kind(self.folder) is None and not self._may_create_folder:
            raise missing_folder("--output", self.folder)
        existing = self.folder
        while _kind(existing) is None:
            existing = existing.parent
        if _kind(existing) != "folder":
            raise InputError(f"--output: {existing} is a file, not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"--output: the folder {existing} is not writable")

    def _last_number(self) -> int:
        """The largest {n} among the files that this template could have named."""
        if _kind(self.folder) is None:
            return 0
        fields = {None: "", "date": r".*?\d{4}-\d\d-\d\d.*?", "seed": r"\d+?"}
        pattern = ""
        for literal, field, spec, _ in string.Formatter().parse(self._template):
            # Right behind other digits the number has as many as it is filled up to.
            width = re.fullmatch("0([1-9])d?", spec or "") if pattern and not literal else None
            own = r"(\d+)" if width is None else rf"(\d{{{width[1]}}})"
            pattern += re.escape(literal) + (own if field == "n" else fields.get(field, ".*?"))
        matches = (re.fullmatch(pattern, name) for name in os.listdir(self.folder))
        return max((int(match[1]) for match in matches if match), default=0)


def missing_folder(flag: str, folder: Path) -> InputError:
    """What is said where a flag needs a folder that is not there."""
    return InputError(f"{flag}: there is no folder {folder}", hint=f"mkdir -p {quote(str(folder))}")


def _takes_bytes(stream: TextIO | None) -> bool:
    """Not a terminal, and not None, which a stream that the caller closed is."""
    return stream is not None and not stream.isatty()


def _kind(path: Path) -> Literal["folder", "file"] | None:
    """What is at a path, None if nothing. Raises InputError where the system does not say: too long, not permitted."""
    try:
        return "folder" if stat.S_ISDIR(path.stat().st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"--output: {error.strerror}: {path}") from None
    except ValueError as error:
        raise InputError(f"--output: {error}: {path}") from None


def prompt_slug(prompt: str) -> str:
    """A prompt as part of a file name: lower-case letters, digits and hyphens, at most MAX_SLUG."""
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    return "-".join(words)[:MAX_SLUG].strip("-") or "picture"


def _template_fields(template: str) -> set[str]:
    """The fields a file name uses. Only plain known names: no attributes, indices or conversions."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"--output {template}: {error}", hint="a literal brace is written twice: {{ }}") from None
    found = [(field, spec or "", conversion) for _, field, spec, conversion in parts if field is not None]
    for field, spec, conversion in found:
        if field not in FIELDS:
            raise InputError(
                f"--output: there is no field {{{field}}}", hint=", ".join(f"{{{name}}}" for name in FIELDS)
            )
        if conversion is not None or (spec and (field not in ("n", "seed") or not re.fullmatch(r"0?[1-9]?", spec))):
            raise InputError(f"--output: {{{field}:{spec}}} is not a valid field", hint="{n:05} pads with zeros")
    names = [field for field, _, _ in found]
    if names.count("n") > 1:
        raise InputError("--output: {n} may stand in a name once")
    return set(names)
