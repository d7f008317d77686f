"""Exit codes, and what the boundary makes of whatever is raised."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
import typer

from latentgen import errors
from latentgen.cli.boundary import MAX_LINE, escape, one_line, run_guarded
from latentgen.request import RequestError


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.LatentgenError, 1),
        (errors.RuntimeFailure, 1),
        (errors.InputError, 2),
        (errors.ConfigError, 2),
        (errors.ShapeError, 2),
        (errors.ModelNotFoundError, 3),
        (errors.ModelLoadError, 3),
        (errors.OutOfMemoryError, 4),
        (errors.PartialFailure, 5),
    ],
)
def test_each_error_ends_with_its_code_in_one_line(
    kind: type[errors.LatentgenError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise kind("the cause", hint="the way out")

    assert run_guarded(fail, []) == code
    assert capsys.readouterr() == ("", "error: the cause (the way out)\n")


def test_a_request_error_is_an_input_error() -> None:
    assert issubclass(RequestError, errors.InputError)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            MemoryError(),
            4,
            "error: not enough memory (a smaller --size, --batch-size 1, or --dtype bfloat16 needs less)\n",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), 4, "error: not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 4, "error: not enough"),
        (SystemExit(7), 7, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: cannot write: No space left on device\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a\n/b"),
            1,
            "error: cannot read or write /a\\n/b: Permission denied\n",
        ),
        *(
            (OSError(number, os.strerror(number), b"out/x"), 1, f"error: cannot {verb} out/x: {os.strerror(number)}\n")
            for number, verb in (
                (errno.EDQUOT, "write"),
                (errno.EFBIG, "write"),
                (errno.EROFS, "write"),
                (errno.EPERM, "read or write"),
            )
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), 4, "error: not enough memory ("),
        (typer.BadParameter("no such thing."), 2, "error: invalid value: no such thing\n"),
    ],
)
def test_what_is_not_ours_has_a_code_too(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert run_guarded(fail, []) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == (1 if line else 0)


def test_our_bug_leaves_a_traceback_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail() -> None:
        raise KeyError("a \x1b[31mkey\n")

    assert run_guarded(fail, []) == 1
    out, err = capsys.readouterr()
    (log,) = tmp_path.iterdir()
    assert out == ""
    assert err.startswith("error: this is a bug in latentgen: KeyError: ")
    assert str(log) in err
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert "Traceback" in log.read_text()
    assert "raise KeyError" in log.read_text()


def test_sigterm_ends_with_143_and_gives_the_handler_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def wait() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal did not arrive")

    assert run_guarded(wait, []) == 143
    assert capsys.readouterr().err == "terminated\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_success_is_zero() -> None:
    assert run_guarded(lambda: None, []) == 0


def test_nothing_in_a_message_reaches_the_terminal_as_a_command() -> None:
    assert escape("a\x1b[2J\nb\r\x07\u202e\udce9 ü 🌲") == "a\\x1b[2J\\nb\\r\\x07\\u202e\\udce9 ü 🌲"


def test_a_long_message_keeps_its_hint_and_verbose_keeps_all() -> None:
    line = one_line("x" * 1000, "the way out")
    assert len(line) == MAX_LINE
    assert line.endswith("… (the way out)")
    assert one_line("x" * 1000, None, limit=None) == "x" * 1000
