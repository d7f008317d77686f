"""Compile the kernels: `python -m latentgen.kernels.build`; an installation from source does it by itself.

A Linux machine with x86-64 and a C++ compiler is needed. Nothing else of latentgen is imported here, so that the build
of a wheel can call it before anything is installed.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / f"{name}.cpp" for name in ("attention", "group_norm", "winograd"))
LIBRARY = FOLDER / "_kernels.so"

COMPILE = ("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fno-exceptions", "-fno-math-errno", "-w")
"""No -march: the instructions that need a newer CPU are turned on function by function, and asked for when called."""


def why_not_here() -> str | None:
    """Why this machine cannot have the kernels, whatever compiler it has; None if it can."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"they are for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    return None


def wheel_platform() -> str:
    """The platform tag of a wheel that holds the kernels: they need nothing newer than glibc 2.17."""
    return "manylinux_2_17_x86_64"


def build(target: Path = LIBRARY) -> str | None:
    """Compile to `target`, replacing it as a whole; why that was not possible, or None."""
    if (reason := why_not_here()) is not None:
        return reason
    compiler = shlex.split(os.environ.get("CXX", ""))
    if not compiler:
        found = [each for name in ("c++", "g++") if (each := shutil.which(name))]
        compiler = sorted(found, key=lambda each: _is_clang([each]))[:1]
    if not compiler:
        return "there is no C++ compiler (on Debian: apt install g++)"
    if _is_clang(compiler):
        return f"{compiler[0]} is clang, whose OpenMP is not torch's (on Debian: apt install g++; CXX=g++)"
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder) / f"{source.stem}.o" for source in SOURCES]
        linked = target.with_suffix(f".{os.getpid()}.tmp")
        # Linked without -fopenmp: a second OpenMP in the process would have threads of its own beside torch's.
        for command in (
            *([*compiler, *COMPILE, "-c", str(a), "-o", str(b)] for a, b in zip(SOURCES, objects, strict=True)),
            [*compiler, "-shared", "-static-libgcc", *map(str, objects), "-o", str(linked)],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                return f"{compiler[0]} cannot be run: {error.strerror}"
            if done.returncode != 0:
                linked.unlink(missing_ok=True)
                message = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
                return f"{Path(compiler[0]).name} failed: {message}"
        linked.replace(target)
    return None


def _is_clang(compiler: list[str]) -> bool:
    """clang calls the functions of an OpenMP of its own; what such a library misses shows only when it is loaded."""
    try:
        said = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return False  # what cannot be run is told of when it is to compile
    return "clang" in said.stdout


if __name__ == "__main__":
    failure = build()
    print(f"error: no kernels: {failure}" if failure else f"compiled {LIBRARY.name}", file=sys.stderr)
    sys.exit(1 if failure else 0)
