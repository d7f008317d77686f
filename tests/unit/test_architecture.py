"""Who imports whom: the layer table of `latentgen/ARCHITECTURE.md`, held against the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import latentgen
from tests.tiny_bundle import save_tiny_model

PACKAGE = Path(latentgen.__file__).parent

LAYERS = {
    1: {"config", "presets", "errors", "request", "jsonfile", "file_starts", "exif", "user_folders"},
    2: {"models", "diffusion"},
    3: {"samplers", "checkpoints", "corpus", "data", "images", "kernels", "prompts"},
    4: {"pipeline", "training", "evaluation"},
    5: {"cli", "server", "__main__"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}

HEAVY = (
    "torch",
    "numpy",
    "PIL",
    "rich",
    "transformers",
    "open_clip",
    "accelerate",
    "tokenizers",
    "safetensors",
    "starlette",
    "uvicorn",
)
NEVER_WHEN_GENERATING = (
    "transformers",
    "open_clip",
    "accelerate",
    "diffusers",
    "torchvision",
    "huggingface_hub",
    "rich",
)


@dataclass(frozen=True)
class Import:
    source: str
    """File, for messages."""
    importer: str
    """Top-level part of the package that imports, such as "models"."""
    imported: str
    in_function: bool


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> list[Import]:
    """Every import of our own modules in a file, those inside functions and TYPE_CHECKING blocks too."""
    source = path.relative_to(PACKAGE)
    importer = source.parts[0].removesuffix(".py")
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool) -> None:
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            # `from latentgen import x` may name a module or one of the package's own functions.
            is_root = node.module == "latentgen"
            modules = [f"latentgen.{alias.name}" for alias in node.names] if is_root else [node.module or ""]
        ours = [part(module) for module in modules if module.split(".")[0] == "latentgen"]
        found.extend(Import(str(source), importer, name, in_function) for name in ours if name in LAYER_OF)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text()), False)
    return found


def is_allowed(each: Import) -> bool:
    importer, imported = LAYER_OF[each.importer], LAYER_OF[each.imported]
    if each.importer == each.imported or imported < importer or importer == imported == 1:
        return True
    if (each.importer, each.imported) == ("evaluation", "pipeline"):
        return True
    if (each.importer, each.imported) == ("training", "pipeline"):
        return each.in_function  # for sample pictures
    if (each.importer, each.imported) == ("server", "cli"):
        return True  # a server plans as `generate` does
    if (each.importer, each.imported) == ("cli", "server"):
        return each.in_function
    return {each.importer, each.imported} == {"cli", "__main__"}


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_module_has_a_layer() -> None:
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES} <= set(LAYER_OF)


def test_imports_go_down() -> None:
    wrong = [each for path in SOURCES for each in imports_of(path) if not is_allowed(each)]
    assert not wrong, "\n".join(f"{each.source} imports {each.imported}" for each in wrong)


def test_the_table_in_the_document_is_this_one() -> None:
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", (PACKAGE / "ARCHITECTURE.md").read_text(), flags=re.MULTILINE)
    assert {int(layer) for layer, _ in rows} == set(LAYERS)
    for layer, names in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert LAYER_OF.get(name) == int(layer), f"{name} is in layer {layer} of the document"


@pytest.mark.parametrize(
    ("each", "allowed"),
    [
        (Import("", "models", "config", False), True),
        (Import("", "models", "diffusion", False), False),
        (Import("", "images", "request", False), True),
        (Import("", "images", "samplers", False), False),
        (Import("", "diffusion", "samplers", True), False),
        (Import("", "training", "pipeline", True), True),
        (Import("", "training", "pipeline", False), False),
        (Import("", "pipeline", "cli", True), False),
        (Import("", "server", "cli", False), True),
        (Import("", "cli", "server", False), False),
    ],
)
def test_the_rule_itself(each: Import, allowed: bool) -> None:
    assert is_allowed(each) is allowed


# What is really imported, seen from a fresh interpreter


def run_python(code: str, *arguments: str, timeout_s: float = 120) -> str:
    """stdout of a Python program that must succeed, run beside the package."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from latentgen.cli.app import main
assert main(["--help"]) == 0
assert main(["--version"]) == 0
assert main(["generat"]) == 2
heavy = [name for name in {(*HEAVY, "typer", "click", "json")!r} if name in sys.modules]
assert not heavy, heavy
"""
    assert "generate" in run_python(code)


def test_commands_and_the_light_modules_import_nothing_heavy() -> None:
    light = [f"latentgen.cli.{path.stem}" for path in (PACKAGE / "cli").glob("[!_]*.py")]
    light += ["latentgen.request", "latentgen.presets", "latentgen.samplers.registry", "latentgen.checkpoints.layout"]
    code = f"""
import sys
from importlib import import_module
for name in {light!r}:
    import_module(name)
    heavy = [each for each in {HEAVY!r} if each in sys.modules]
    assert not heavy, (name, heavy)
"""
    run_python(code)


def test_generating_is_light_offline_and_runs_nothing(tmp_path: Path) -> None:
    """One real picture: no transformers or open_clip, no socket, no pickle, no other program, little memory.

    The network is tiny, so what is measured is what all else takes beyond torch itself, which differs by build.
    """
    model = save_tiny_model(tmp_path / "tiny")
    code = f"""
import resource, sys
from pathlib import Path
import torch
def peak_kib():
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts a parent's peak into ru_maxrss; this one begins with the program
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak_kib()
forbidden = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "pickle.find_class", "subprocess.Popen", "os.system"):
        forbidden.append((event, arguments))
sys.addaudithook(watch)
from latentgen.cli.app import main
assert main(["generate", "a cat", "--seed", "1", "--model", sys.argv[1], "--output", sys.argv[2]]) == 0
assert not forbidden, forbidden
heavy = [name for name in {NEVER_WHEN_GENERATING!r} if name in sys.modules]
assert not heavy, heavy
print(peak_kib() - before)
"""
    *_, grown_kib = run_python(code, str(model), str(tmp_path / "out.png")).split()
    assert (tmp_path / "out.png").exists()
    assert 0 < int(grown_kib) < 256 * 2**10, f"{int(grown_kib) / 2**10:.0f} MiB more than torch"
