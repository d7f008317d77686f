"""How many steps a strength leaves, and which are guided, counted without torch: for checks, messages, progress bars.

A picture that is drawn from another one starts part of the way down (SDEdit, arXiv:2108.01073), at the level that
`NoiseSchedule.truncate` cuts the run to. Of 30 steps a strength of 0.6 leaves 18.
"""

from __future__ import annotations

import math

from latentgen.request import MAX_SIDE_PX, GenerationRequest, InitPicture, RequestError


def steps_drawn(steps: int, strength: float) -> int:
    """int(steps strength), as the published image-to-image pipelines count."""
    return min(int(steps * strength), steps)


def first_pass_steps(request: GenerationRequest) -> int:
    """Sampler steps from the noise, or from the picture that the request starts from."""
    return request.steps if request.init is None else steps_drawn(request.steps, request.init.strength)


def second_pass_steps(request: GenerationRequest) -> int:
    """Sampler steps at the larger size; 0 without a second pass."""
    return 0 if request.hires is None else steps_drawn(request.steps, request.hires.strength)


def total_steps(request: GenerationRequest) -> int:
    """Every sampler step of a picture: how often `on_step` reports it."""
    return first_pass_steps(request) + second_pass_steps(request)


def hires_size(request: GenerationRequest, multiple_px: int) -> tuple[int, int]:
    """Width and height of the finished picture: the request's, enlarged and rounded to the model's grid."""
    scale = 1.0 if request.hires is None else request.hires.scale
    width, height = (round(side * scale / multiple_px) * multiple_px for side in (request.width_px, request.height_px))
    return width, height


def check_passes(request: GenerationRequest, multiple_px: int) -> None:
    """Raise RequestError if a pass has no step to draw, or cannot be drawn beside what else is asked for."""
    if request.init is not None:
        left, top, right, bottom = request.init.outpaint
        if left + right >= request.width_px or top + bottom >= request.height_px:
            size = f"{request.width_px}x{request.height_px}"
            raise RequestError("outpaint", f"leaves no room for the picture within {size}", hint="a larger --size")
    passes = {"strength": first_pass_steps(request)}
    if request.hires is not None:
        passes["hires-strength"] = second_pass_steps(request)
    for field, left in passes.items():
        if left == 0:
            least = math.ceil(1000 / request.steps) / 1000
            raise RequestError(field, f"leaves none of {request.steps} steps to draw", hint=f"{least:g} is enough")
    if request.hires is None:
        return
    if request.init is not None and keeps_pixels(request.init):
        raise RequestError(
            "hires",
            "redraws the whole picture, and --mask and --outpaint keep a part of it",
            hint="draw it in two runs",
        )
    size = hires_size(request, multiple_px)
    if max(size) > MAX_SIDE_PX:
        raise RequestError("hires", f"gives {size[0]}x{size[1]}", hint=f"the longest side is {MAX_SIDE_PX}")


def keeps_pixels(init: InitPicture) -> bool:
    """Whether a part of the picture must come out as it went in."""
    return init.mask_sha256 is not None or any(init.outpaint)


def guided_steps(steps: int, start: float, end: float) -> range:
    """Which of a run's steps are guided from the fraction `start` to the fraction `end` of it.

    Step i of n is guided where start <= i / n < end, so 0 and 1 are all steps; where that is none, the step within
    which the part begins: a run of one step is guided too.
    """
    first, past = (sum(step / steps < fraction for step in range(steps)) for fraction in (start, end))
    return range(first - 1, first) if start < end and first == past else range(first, past)
