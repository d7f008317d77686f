"""The front door: help, version, one terminal, one closed pipe."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from latentgen import __version__
from latentgen.cli.app import COMMANDS
from latentgen.cli.doctor import EXTRAS
from tests.cli.conftest import Cli

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
OURS = ("generate", "replay", "info", "models", "doctor")


def test_doctor_looks_for_every_extra() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(EXTRAS) == set(extras)
    for name, packages in EXTRAS.items():
        required = {re.split(r"[^\w-]", each)[0] for each in extras[name]}
        assert set(packages) <= required
        assert name == "dev" or set(packages) == required


def test_help_lists_every_command_and_is_quick() -> None:
    seconds: list[float] = []
    for _ in range(5):
        out, used_s = processor_seconds([sys.executable, "-m", "latentgen", "--help"])
        seconds.append(used_s)
    for group in COMMANDS.values():
        for name, entry in group.items():
            assert re.search(rf"^  {name} +{re.escape(entry.help)}$", out, flags=re.MULTILINE)
    assert min(seconds) < 0.2, f"{min(seconds):.3f} s of processor time; has something heavy been imported?"


def processor_seconds(command: list[str]) -> tuple[str, float]:
    """stdout, and the child's own time on a core: a busy machine makes the clock on the wall later, but not this."""
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return out, usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("arguments", [[], ["-h"], ["help"]])
def test_help_is_what_nothing_asks_for(arguments: list[str], cli: Cli) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == cli("--help").out


@pytest.mark.parametrize("family", ["models", "data", "evaluate"])
def test_a_family_alone_shows_its_commands(family: str, cli: Cli) -> None:
    outcome = cli(family)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == cli(family, "--help").out


def test_the_version_is_the_packages(cli: Cli) -> None:
    assert cli("--version").out == f"latentgen {__version__}\n"


@pytest.mark.parametrize("name", OURS)
def test_each_command_has_a_help_page_with_two_examples(name: str, cli: Cli) -> None:
    outcome = cli(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count(f"latentgen {name} ") >= 3, "usage and two examples"
    assert cli(name, "-h").out == outcome.out


def test_the_help_page_of_generate_names_every_alias(cli: Cli) -> None:
    page = cli("generate", "--help").out
    for flag in ("--repeats", "--cfg-scale", "--negative", "--from-file", "--dry-run", "--size", "-W", "-H"):
        assert flag in page


ENDING = """
import atexit, os, sys, types
from latentgen.cli import app
class Kept:
    def __del__(self): os.write(1, b"freed")
kept = Kept()
def command(arguments):
    atexit.register(print, "cleaned", end=" ")
    print("done", end=" ")
    return 3
app.main = command
if "earlier" in sys.argv:
    atexit.register(print, "earlier", end=" ")
sys.modules.update({name: types.ModuleType(name) for name in sys.argv[1:]})
if "closed" in sys.argv:
    os.close(1)
app.run()
"""


def ended(*modules: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENDING, *modules]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_with_torch_the_process_ends_when_all_is_done_and_written() -> None:
    """Not before, and with the code of the command; only the interpreter's own end, half a second, is left out."""
    assert (ended().returncode, ended().stdout) == (3, "done cleaned freed")
    quick = ended("torch")
    assert (quick.returncode, quick.stdout) == (3, "done cleaned ")
    assert ended("torch", "earlier").stdout == "done cleaned earlier freed"


def test_what_cannot_be_written_at_the_end_is_told_as_python_tells_it() -> None:
    quick = ended("torch", "closed")
    assert quick.returncode == ended("closed").returncode not in (0, 3)
    assert "Bad file descriptor" in quick.stderr


def run_on_a_terminal(command: list[str], folder: Path, extra: Mapping[str, str]) -> tuple[bytes, bytes]:
    """stdout through a pipe, and what a terminal on stderr was sent."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**ENVIRONMENT, "TERM": "xterm-256color", **extra},
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    try:
        # Read as it comes: a terminal that nobody reads stops the program once a few kilobytes wait.
        while data := os.read(leader, 4096):
            shown += data
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(leader)
    out, _ = process.communicate()
    assert process.returncode == 0
    return out, shown


@pytest.mark.parametrize(("extra", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_is_shown_progress_and_no_color_is_obeyed(
    extra: Mapping[str, str], is_coloured: bool, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["generate", "a cat", "-m", str(tiny_model), "-s", "1", "-o", "a.png"]
    out, shown = run_on_a_terminal([sys.executable, "-m", "latentgen", *arguments], tmp_path, extra)
    assert out == b"a.png\n"
    assert b"drawing" in shown
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-9]", shown)) is is_coloured


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"]])
def test_a_reader_that_has_gone_is_no_traceback(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "latentgen", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


SLOW_IMPORT = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.{name})
    time.sleep(20)
except BaseException:
    pass
print("loaded without a part of itself", flush=True)
"""


@pytest.mark.parametrize(
    ("arguments", "name", "code", "line"),
    [
        (("generate", "a cat", "-o", "a.png"), "SIGINT", 130, "interrupted\n"),
        (("generate", "a cat", "-o", "a.png"), "SIGTERM", 143, "terminated\n"),
        (("decode", "a.safetensors", "-o", "a.png"), "SIGINT", 130, "interrupted\n"),
        (("evaluate", "scenes", "--per-category", "1", "--renders", "0"), "SIGINT", 130, "interrupted\n"),
        (("serve", "--port", "0"), "SIGINT", 130, "interrupted\n"),
    ],
)
def test_a_signal_while_torch_is_imported_ends_the_process(
    arguments: tuple[str, ...], name: str, code: int, line: str, tiny_model: Path, tmp_path: Path
) -> None:
    """An import that is signalled in its midst, and catches whatever is raised in it."""
    modules, here = tmp_path / "modules", tmp_path / "here"
    for folder in (modules / "torch", here):
        folder.mkdir(parents=True)
    (modules / "torch" / "__init__.py").write_text(SLOW_IMPORT.format(name=name))
    done = subprocess.run(
        [sys.executable, "-m", "latentgen", *arguments, "-m", str(tiny_model)],
        cwd=here,
        env={**ENVIRONMENT, "PYTHONPATH": f"{modules}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", line)
    assert not list(here.iterdir())


def test_an_interrupt_that_is_ignored_stays_so(cli: Cli) -> None:
    """As in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert cli("--version").code == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
