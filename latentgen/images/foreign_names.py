"""Words of other tools for samplers and schedules that the registry (`samplers/registry.py`) does not read by itself.

It knows A1111's titles and most of k-diffusion's, ComfyUI's, diffusers' and InvokeAI's names; what is here is left.
A word that is in neither table goes through as it is, and whoever resolves it says that it is unknown.
"""

from __future__ import annotations

AUTOMATIC = "Automatic"
"""A1111's schedule type that stands for the sampler's own: `SamplerEntry.schedule`."""
UNIFORM, LEADING, LINSPACE = "uniform", "leading", "linspace"

_SAMPLERS = {"k_dpmpp_2": "dpmpp_2m", "k_dpmpp_2_a": "dpmpp_2s_a"}
"""InvokeAI 2."""
_SCHEDULES = {"ddim": LEADING, "ddim_uniform": LEADING}
"""A1111's and ComfyUI's, which begin at timestep 1 as "leading" with its offset."""


def sampler_word(name: str) -> str:
    """A sampler's name in a form the registry reads. ComfyUI's `_gpu` says where noise is drawn, not how."""
    return _SAMPLERS.get(name, name.removesuffix("_gpu"))


def schedule_word(name: str) -> str:
    """A schedule's name in a form the registry reads."""
    return _SCHEDULES.get(name.lower(), name)
