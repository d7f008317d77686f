"""Which device and which precision a model is computed on."""

from __future__ import annotations

import torch

from latentgen.errors import InputError


def present_devices() -> list[str]:
    """Devices of this machine that torch can use, best first."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda", "cuda:1" or "mps". Raises InputError naming the devices present if it is not one."""
    present = present_devices()
    if name == "auto":
        return torch.device(present[0])
    known = name in present or (name == "cuda" and present[0].startswith("cuda"))
    if not known:
        raise InputError(f"there is no device {name} here", hint=f"present: {', '.join(present)}")
    return torch.device(name)


DTYPES = ("float32", "bfloat16", "float16")


def choose_dtype(name: str, device: torch.device, *, fast: bool = True) -> torch.dtype:
    """ "auto" or one of DTYPES. Raises InputError for one that the device computes badly or not at all.

    auto: float16 on an NVIDIA GPU; bfloat16 on a CPU that has it, unless `fast` is False; else float32.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if fast and device.type == "cpu" and cpu_has_bfloat16() else torch.float32
    if name not in DTYPES:
        raise InputError(f"there is no dtype {name}", hint=f"choose from {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise InputError("float16 is for GPUs: a CPU computes it slowly", hint="use bfloat16 or float32")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by itself: AVX512-BF16 or AMX. Others do it by float32, and slowly."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test is not None and test() for test in tests)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
