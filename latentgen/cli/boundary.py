"""The one error boundary: whatever a command raises becomes one line on stderr and an exit code.

0 done, 1 runtime failure or our bug, 2 bad usage or input, 3 model or file, 4 out of memory, 5 some of several pictures
failed, 130 interrupted, 143 terminated. A traceback is for a bug of ours, and goes to a file.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TextIO

from latentgen import __version__
from latentgen.errors import LatentgenError, OutOfMemoryError, RuntimeFailure, is_out_of_memory

MAX_LINE = 300
"""Characters of an error line; `--verbose` prints all of it."""

_REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), "cannot write"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "cannot read or write"),
}
"""How the system says that a disk is full or a file may not be used; an OSError of another kind is a bug of ours."""

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
_WORDS = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}
_STOPS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that nothing on the way up takes it for a failure it can handle."""


def run_guarded(command: Callable[[], int | None], arguments: Sequence[str]) -> int:
    """Run a command; its exit code. `arguments` are the command line's, to see whether they ask for --verbose."""
    limit = None if "-v" in arguments or "--verbose" in arguments else MAX_LINE
    before = _handle(dict.fromkeys(_STOPS, _stop))
    try:
        code = command() or 0
        if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]  None where the caller closed it
            sys.stdout.flush()
        if code == INTERRUPTED:  # typer turns KeyboardInterrupt into its exit code
            write_line(sys.stderr, _WORDS[code])
        return code
    except (KeyboardInterrupt, Terminated) as stop:
        code = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else TERMINATED
        write_line(sys.stderr, _WORDS[code])
        return code
    except BrokenPipeError:
        # The reader has gone, as in `| head -1`; what Python still holds for it must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:  # noqa: BLE001  this is the boundary
        known = as_ours(error)
        if known is None:
            write_line(sys.stderr, f"error: {one_line(*record_bug(error), limit=limit)}")
            return 1
        message, hint, code = known
        write_line(sys.stderr, f"error: {one_line(message, hint, limit=limit)}")
        return code
    finally:
        _handle(before)


def one_line(message: str, hint: str | None, *, limit: int | None = MAX_LINE) -> str:
    """`message (hint)` with control characters escaped, so that a file name cannot draw on the terminal."""
    message, ending = escape(message), f" ({escape(hint)})" if hint else ""
    if limit is not None and len(message) + len(ending) > limit:
        message = message[: max(limit - len(ending) - 1, 40)] + "…"
    return message + ending


def escape(text: str) -> str:
    """Everything unprintable as its Python escape: \\n, \\x1b, \\udc80."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def as_ours(error: BaseException) -> tuple[str, str | None, int] | None:
    """Message, hint and exit code of a failure that is not a bug of ours."""
    if isinstance(error, LatentgenError):
        return error.message, error.hint, error.exit_code
    if is_out_of_memory(error):
        hint = "a smaller --size, --batch-size 1, or --dtype bfloat16 needs less"
        return "not enough memory", hint, OutOfMemoryError.exit_code
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        path = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        return f"{_REFUSALS[error.errno]}{path}: {error.strerror}", None, RuntimeFailure.exit_code
    typer = sys.modules.get("typer")
    if typer is not None and isinstance(error, typer.TyperException):
        return _usage_line(error)
    return None


def _usage_line(error: BaseException) -> tuple[str, str | None, int]:
    """typer's usage error in our form: one line, and what the user may have meant."""
    option = getattr(error, "option_name", None)
    close = getattr(error, "possibilities", ...)  # None for a short option, absent where the value is what is wrong
    context = getattr(error, "ctx", None)
    hint = f"see: {context.command_path} --help" if context is not None else None
    if option is not None and close is not ...:
        message = f"there is no option {option}"
        if close:
            hint = f"did you mean {close[0]}?"
        elif " " in option or not option.startswith("--"):
            hint = "a prompt that begins with a dash is written --prompt=…"
    else:
        message = " ".join(error.format_message().split()).rstrip(".")  # pyright: ignore[reportAttributeAccessIssue]
        message = message[:1].lower() + message[1:]
    return message, hint, int(getattr(error, "exit_code", 2))


def record_bug(error: BaseException) -> tuple[str, str]:
    """Write the traceback to a file; the message and the hint that name it."""
    import platform
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="latentgen-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(f"latentgen {__version__}, Python {platform.python_version()}, {platform.machine()}\n\n")
        file.write("".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode())
    return f"this is a bug in latentgen: {type(error).__name__}: {error}", f"details: {file.name}"


def write_line(stream: TextIO | None, line: str) -> None:
    """A line in one write, so that lines of several processes do not mix in one pipe; nothing if the stream is closed.

    print() writes its text and the end of the line one after the other where Python does not buffer.
    """
    if stream is not None:
        stream.write(f"{line}\n")
        stream.flush()


def _stop(number: int, frame: FrameType | None) -> None:
    """What SIGINT and SIGTERM do: they raise, or end the process at once if a module is being imported.

    An import is no place for an exception: where C++ waits for Python, as in torch's, it aborts the process, and some
    packages catch whatever is raised while they are loaded, and go on without a part of themselves.
    """
    while frame is not None and frame.f_code is not run_guarded.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            write_line(sys.stderr, _WORDS[128 + number])
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _handle(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Set what signals do and give back what they did; only the main thread of a program may.

    SIGINT stays as it is where it does not do what Python makes it do: a shell's background job ignores it.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():
        return {}
    if signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, _stop):
        handlers = {number: handler for number, handler in handlers.items() if number != signal.SIGINT}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}
