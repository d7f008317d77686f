"""How far each sampler's pictures are from the data, where that is known exactly. Takes a second.

    python benchmarks/samplers.py [--betas scaled_linear|squaredcos_cap_v2|linear] [--schedule NAME] [--steps 10 20 50]

The data are N(0, 0.5^2), whose best denoiser is known, and a sampler is then a linear map of its start and its noises.
One run over their coefficients gives the spread of its pictures, without drawing any. Printed is that spread's error in
percent: below 0 the pictures are too much alike and too soft, above 0 too strong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from latentgen.config import BetaSchedule, DiffusionConfig
from latentgen.diffusion.schedule import LEVELS, NoiseSchedule
from latentgen.samplers.registry import SAMPLERS, get_sampler

SPREAD = 0.5


def spread_error(name: str, sigmas: Tensor) -> float:
    """Of the pictures over levels sigmas (n+1,), relative to the data's spread. Started from the data's law there."""
    unit = torch.eye(2 * len(sigmas), dtype=torch.float64)
    start, *noises = unit.split(1)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x * SPREAD**2 / (SPREAD**2 + float(sigma[0]) ** 2)

    x = (SPREAD**2 + float(sigmas[0]) ** 2) ** 0.5 * start
    pictures = get_sampler(name)(denoise, x, sigmas, noise=partial(next, iter(noises)))
    return float(pictures.norm()) / SPREAD - 1


def table(betas: BetaSchedule, schedule: str | None, steps: Sequence[int]) -> str:
    """A row a sampler, in Markdown; without a schedule each has the one the registry recommends."""
    own = "trailing" if betas == "squaredcos_cap_v2" else "leading"
    model = NoiseSchedule.from_config(DiffusionConfig(beta_schedule=betas, timestep_spacing=own))
    header = ["sampler", "schedule", "looks a step", *(f"{n} steps" for n in steps)]
    rows = [header, ["---"] * len(header)]
    for entry in SAMPLERS.values():
        name = schedule or (entry.schedule if own == "leading" else own)
        errors = [spread_error(entry.name, model.inference_sigmas(n, name).double()) for n in steps]
        rows.append([entry.name, name, str(entry.evaluations_per_step), *(f"{error:+.1%}" for error in errors)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", choices=get_args(BetaSchedule), default="scaled_linear")
    parser.add_argument("--schedule", choices=list(LEVELS))
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50])
    given = parser.parse_args()
    print(table(given.betas, given.schedule, given.steps))


if __name__ == "__main__":
    main()
