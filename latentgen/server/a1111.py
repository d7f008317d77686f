"""AUTOMATIC1111's HTTP interface, `/sdapi/v1`: its requests as ours, our pictures as its answers.

What a request does not say is the model's default, not that program's. What it says and latentgen has not is told in
the answer's `info`, by name and reason, as `replay` tells it of that program's pictures.
Source: `modules/api/models.py` and `/docs` of that project.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latentgen import __version__
from latentgen.cli.plan import Entry, Flags
from latentgen.errors import InputError
from latentgen.images.a1111 import REASONS
from latentgen.images.files import open_picture
from latentgen.images.foreign import short
from latentgen.images.foreign_names import AUTOMATIC, schedule_word
from latentgen.samplers.registry import SAMPLERS, SCHEDULES, resolve_sampler
from latentgen.server.bodies import (
    MAX_NUMBER,
    Body,
    flag_value,
    in_base64,
    is_true,
    name_in,
    number_of_pictures,
    save_picture,
    text_of,
)

if TYPE_CHECKING:
    from latentgen.checkpoints.textual_inversion import EmbeddingFile
    from latentgen.pipeline import GenerationResult
    from latentgen.server.jobs import Job, Progress

_FLAGS: Final = {
    "negative_prompt": "negative-prompt",
    "seed": "seed",
    "steps": "steps",
    "cfg_scale": "guidance",
    "width": "width",
    "height": "height",
}
"""Keys that a flag stands for as they are."""
_NUMBERS: Final = (
    *("seed", "steps", "cfg_scale", "width", "height", "n_iter", "batch_size", "denoising_strength", "eta"),
    *("hr_scale", "hr_resize_x", "hr_resize_y", "mask_blur", "resize_mode", "clip_skip"),
)
"""Keys whose numbers some clients send as texts."""
_DDIM: Final = "ddim"
_USUAL_ETA: Final = (0, 1)
"""Of other samplers: those that add noise have 1, the others none, and clients send either to any of them."""
_HIRES_SCALE: Final = 2.0
_ORIGINAL: Final = 1
"""`inpainting_fill`: drawing starts from what is under the mask."""
_CROP: Final = 1
"""`resize_mode`: a picture of another shape is cropped."""
_HONOURED: Final = frozenset(
    {
        *_FLAGS,
        "eta",
        "prompt",
        "sampler_name",
        "sampler_index",
        "scheduler",
        "n_iter",
        "batch_size",
        "denoising_strength",
        "enable_hr",
        "hr_scale",
        "hr_resize_x",
        "hr_resize_y",
        "init_images",
        "mask",
        "mask_blur",
        "inpainting_mask_invert",
        "override_settings",
        "resize_mode",
        "send_images",
        "clip_skip",
    }
)
_SAYS_NOTHING: Final = frozenset(
    {
        "auth",
        "url",
        "do_not_save_grid",
        "do_not_save_samples",
        "force_task_id",
        "image_cfg_scale",
        "include_init_images",
        "inpaint_full_res_padding",
        "mask_round",
        "override_settings_restore_afterwards",
        "s_min_uncond",
        "s_tmax",
        "seed_resize_from_h",
        "seed_resize_from_w",
        "subseed",
    }
)
"""Keys that change nothing by themselves, or only beside one that is told of."""
_DONE_ANYWAY: Final[Mapping[str, Any]] = {
    "inpainting_fill": _ORIGINAL,
    "s_noise": 1,
    "initial_noise_multiplier": 1,
}
"""Values of keys that are what happens here; of these keys every other value is told, 0 too."""
_BESIDE: Final[Mapping[str, str]] = {
    "inpaint_full_res": "mask",
    "inpainting_fill": "mask",
    "hr_second_pass_steps": "enable_hr",
    "hr_upscaler": "enable_hr",
    "hr_prompt": "enable_hr",
    "hr_negative_prompt": "enable_hr",
    "hr_checkpoint_name": "enable_hr",
    "hr_sampler_name": "enable_hr",
    "hr_scheduler": "enable_hr",
    "refiner_switch_at": "refiner_checkpoint",
}
"""Keys that mean something beside another alone."""
_REASONS: Final = {
    "alwayson_scripts": "there are no scripts",
    "hr_negative_prompt": REASONS["Hires negative prompt"],
    "hr_prompt": REASONS["Hires prompt"],
    "hr_second_pass_steps": REASONS["Hires steps"],
    "hr_upscaler": REASONS["Hires upscaler"],
    "inpaint_full_res": "the whole picture is looked at, not the masked part alone",
    "inpainting_fill": "drawing starts from what is under the mask",
    "refiner_checkpoint": REASONS["Refiner"],
    "resize_mode": "a picture of another shape is cropped",
    "restore_faces": REASONS["Face restoration"],
    "save_images": "pictures are sent, not kept",
    "script_name": "there are no scripts",
    "styles": "there are no styles",
    "subseed_strength": REASONS["Variation seed strength"],
    "tiling": REASONS["Tiling"],
}
_FALSE: Final = (None, False, 0, "", "false", "False", "0")
_CLIP_SKIP: Final = "CLIP_stop_at_last_layers"
_CHECKPOINT: Final = "sd_model_checkpoint"
_FORMAT: Final = "samples_format"
_RANDOM_SOURCE: Final = "randn_source"
_RNGS: Final = {"CPU": "cpu", "NV": "nv", "GPU": "nv"}

FIXED: Final[Mapping[str, Any]] = {
    "cmd-flags": {},
    "face-restorers": [],
    "hypernetworks": [],
    "latent-upscale-modes": [],
    "prompt-styles": [],
    "realesrgan-models": [],
    "script-info": [],
    "scripts": {"txt2img": [], "img2img": []},
    "sd-vae": [],
    "upscalers": [{"name": "Lanczos", "model_name": None, "model_path": None, "model_url": None, "scale": 4}],
}
"""What clients ask for before they draw, and is hardly here."""


@dataclass(frozen=True, slots=True)
class Asked:
    entry: Entry
    could_not: tuple[str, ...]
    """What is not done of it, each with its reason."""
    sends_images: bool
    id: str | None
    """What the client calls it: `force_task_id`."""


@dataclass(frozen=True, slots=True)
class Here:
    """What draws."""

    model: str
    """Its title."""
    sampler: str
    """What it takes if none is named."""
    multiple_px: int
    """What sides are multiples of."""
    width_px: int
    height_px: int
    """Of its pictures, if nothing is said."""


def read_txt2img(body: Body, here: Here) -> Asked:
    """A request for pictures from words. Raises InputError."""
    body = _numbers_read(body)
    values, remarks = _common(body, here)
    if is_true(body, "enable_hr"):
        values |= flag_value("hr_scale", "hires", _hires_scale(body, values, here))
        if body.get("denoising_strength") is not None:
            values |= flag_value("denoising_strength", "hires-strength", body["denoising_strength"])
    return _asked(body, values, remarks)


def read_img2img(body: Body, here: Here, folder: Path) -> Asked:
    """A request for pictures from a picture, which is written into `folder` and read from there. Raises InputError."""
    body = _numbers_read(body)
    values, remarks = _common(body, here)
    pictures = body.get("init_images")
    if not isinstance(pictures, list) or len(pictures) != 1:
        raise InputError("init_images must be a list of one picture", hint="send a request for each picture")
    values["init_image"] = save_picture("init_images", pictures[0], folder / "picture")
    if body.get("denoising_strength") is not None:
        values |= flag_value("denoising_strength", "strength", body["denoising_strength"])
    if body.get("mask"):
        values["mask"] = save_picture("mask", body["mask"], folder / "mask")
        values["invert_mask"] = is_true(body, "inpainting_mask_invert")
        if body.get("mask_blur") is not None:
            values |= flag_value("mask_blur", "mask-blur", body["mask_blur"])
    if _is_cropped(values) and body.get("resize_mode") not in (None, _CROP):
        remarks.append(f"resize_mode: {_REASONS['resize_mode']}")
    return _asked(body, values, remarks)


def _numbers_read(body: Body) -> Body:
    """The request with texts that are numbers as numbers, where a number is meant; an empty text is none."""
    read = dict(body)
    for key in _NUMBERS:
        if isinstance(value := body.get(key), str):
            read[key] = _number_in(value)
    return read


def _number_in(text: str) -> int | float | str | None:
    """A text's number, None for an empty one; the text as it is if it holds none, for whoever says what is wrong."""
    if not text.strip():
        return None
    try:
        number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip()) else float(text)
    except ValueError:
        return text
    return number if abs(number) <= MAX_NUMBER else text


def _hires_scale(body: Body, values: Mapping[str, Any], here: Here) -> float:
    """Of the second pass: a size that it is to end in comes before a factor; a side that is 0 follows the other.

    Raises InputError for a size that is none.
    """
    factors: list[float] = []
    for key, before in (
        ("hr_resize_x", values.get("width_px") or here.width_px),
        ("hr_resize_y", values.get("height_px") or here.height_px),
    ):
        after = body.get(key) or 0
        if isinstance(after, bool) or not isinstance(after, int | float) or after < 0:
            raise InputError(f"{key} must be a number of pixels, not {short(repr(after))}")
        if after:
            factors.append(after / before)
    return max(factors) if factors else body.get("hr_scale") or _HIRES_SCALE


def _is_cropped(values: Mapping[str, Any]) -> bool:
    """Whether the picture has another shape than what is drawn from it."""
    with open_picture(values["init_image"]) as picture:
        width, height = picture.size
    wanted = values.get("width_px") or width, values.get("height_px") or height
    return wanted[0] * height != wanted[1] * width


def _common(body: Body, here: Here) -> tuple[dict[str, Any], list[str]]:
    """The flags that both kinds of request share, and what is not done of the settings to be overridden."""
    values: dict[str, Any] = {}
    for key, flag in _FLAGS.items():
        if body.get(key) is not None:
            values |= flag_value(key, flag, body[key])
    remarks = _fit(values, here.multiple_px)
    values["count"] = number_of_pictures(body, "n_iter") * number_of_pictures(body, "batch_size")
    if sampler := name_in(body, "sampler_name") or name_in(body, "sampler_index"):
        values["sampler"] = sampler
    schedule = name_in(body, "scheduler")
    if schedule and schedule.casefold() != AUTOMATIC.casefold():
        values["schedule"] = schedule_word(schedule)
    overridden = body.get("override_settings") or {}
    if body.get("clip_skip"):
        values |= flag_value("clip_skip", "clip-skip", body["clip_skip"])
    if resolve_sampler(sampler or here.sampler)[0] == _DDIM:
        values |= flag_value("eta", "eta", body.get("eta"))
    elif body.get("eta") not in (None, *_USUAL_ETA):
        remarks.append(f"eta: {REASONS['Eta']}")
    if not isinstance(overridden, dict):
        raise InputError("override_settings must be an object")
    for key, value in overridden.items():
        if key == _CLIP_SKIP:
            values |= flag_value(key, "clip-skip", value)
        elif key == _CHECKPOINT:
            check_model(value, here.model)
        elif key == _RANDOM_SOURCE and isinstance(value, str) and value in _RNGS:
            values["rng"] = _RNGS[value]
        elif value not in (None, "", "Automatic", "None", []) and (key, value) != (_FORMAT, "png"):
            remarks.append(f"override_settings.{short(str(key))}: not a setting that latentgen has")
    return values, remarks


def _fit(values: dict[str, Any], multiple_px: int) -> list[str]:
    """Bring sides to the nearest that the model draws, in place, and say so: A1111 takes multiples of 8."""
    remarks: list[str] = []
    for key, field in (("width", "width_px"), ("height", "height_px")):
        side = values.get(field)
        if side is not None and side > 0 and side % multiple_px:
            values[field] = max(1, round(side / multiple_px)) * multiple_px
            remarks.append(f"{key}: {values[field]} instead of {side}; sides are multiples of {multiple_px}")
    return remarks


def check_model(name: Any, model: str) -> None:
    """Raise InputError for the name of a model that is not the one that draws.

    It is called by its title, by that without its hash, by the hash alone, or as a file.
    """
    own, _, fingerprint = model.removesuffix("]").rpartition(" [")
    if name and str(name).removesuffix(".safetensors").casefold() not in (
        each.casefold() for each in (model, own, fingerprint)
    ):
        raise InputError(f"the model here is {model}, not {short(str(name))}", hint="latentgen serve --model MODEL")


def _asked(body: Body, values: Mapping[str, Any], remarks: Sequence[str]) -> Asked:
    entry = Entry(text_of(body, "prompt") or "", Flags(**values), "the request")
    sends_images = is_true(body, "send_images", default=True)
    return Asked(entry, (*remarks, *_remarks(body)), sends_images, text_of(body, "force_task_id"))


def _remarks(body: Body) -> list[str]:
    """What a request says that latentgen does not do."""
    remarks: list[str] = []
    for key, value in body.items():
        if key in _HONOURED or key in _SAYS_NOTHING or value is None:
            continue
        if key in _BESIDE and body.get(_BESIDE[key]) in _FALSE:
            continue
        if key == "hr_upscaler" and str(value).startswith(("Latent", "None", "Lanczos")):
            continue
        silent = value == _DONE_ANYWAY[key] if key in _DONE_ANYWAY else not value or value == -1
        if not silent:
            remarks.append(f"{short(key)}: {_REASONS.get(key, 'not a setting that latentgen has')}")
    return remarks


def words_of(body: Body) -> Body:
    """A request without its pictures, and without a client's password."""
    return {key: value for key, value in body.items() if key not in ("init_images", "mask", "auth")}


def answer(
    words: Body, asked: Asked, job: Job, results: Sequence[GenerationResult], model: str, fingerprint: str
) -> dict[str, Any]:
    """The pictures in base64, PNG files that carry their requests, and what was drawn of `words_of` a request."""
    from latentgen.pipeline.result import picture_text

    requests = [result.request for result in results]
    first = job.requests[0]
    info = {
        "prompt": first.prompt,
        "all_prompts": [each.prompt for each in requests],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [each.negative_prompt for each in requests],
        "seed": first.seed,
        "all_seeds": [each.seed for each in requests],
        "subseed": -1,
        "subseed_strength": 0,
        "width": first.width_px,
        "height": first.height_px,
        "sampler_name": SAMPLERS[first.sampler].title,
        "scheduler": SCHEDULES[first.schedule].title,
        "cfg_scale": first.guidance,
        "steps": first.steps,
        "batch_size": len(results),
        "denoising_strength": None if first.init is None else first.init.strength,
        "clip_skip": first.clip_skip or 1,
        "sd_model_name": model.partition(" [")[0],
        "sd_model_hash": fingerprint,
        "index_of_first_image": 0,
        "infotexts": [picture_text(result.metadata).parameters for result in results],
        "version": f"latentgen {__version__}",
        "interrupted": len(results) + len(job.failures) < len(job.requests),
        "could_not": list(asked.could_not),
        "notes": list(job.notes),
    }
    images = [in_base64(result.encode()) for result in results] if asked.sends_images else []
    return {"images": images, "parameters": dict(words), "info": json.dumps(info)}


def progress_answer(progress: Progress | None, picture: str | None) -> dict[str, Any]:
    """How far a job is; a share of 0 and no job if there is none."""
    state = {
        "skipped": False,
        "interrupted": progress is not None and progress.is_stopped,
        "stopping_generation": progress is not None and progress.is_stopped,
        "job": "" if progress is None else "waiting" if progress.ahead else "drawing",
        "job_count": 0 if progress is None else progress.pictures,
        "job_no": 0 if progress is None else progress.pictures_done,
        "job_timestamp": "0",
        "sampling_step": 0 if progress is None else progress.step,
        "sampling_steps": 0 if progress is None else progress.steps,
    }
    return {
        "progress": 0.0 if progress is None else round(progress.share, 4),
        "eta_relative": 0.0 if progress is None or progress.left_s is None else round(progress.left_s, 2),
        "state": state,
        "current_image": picture,
        "textinfo": f"{progress.ahead} before it" if progress is not None and progress.ahead else None,
    }


def samplers() -> list[dict[str, Any]]:
    return [{"name": each.title, "aliases": [each.name, *each.aliases], "options": {}} for each in SAMPLERS.values()]


def embeddings(files: Sequence[EmbeddingFile]) -> dict[str, Any]:
    """The textual inversions that prompts may name."""
    row = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    return {
        "loaded": {each.name: {**row, "shape": each.width, "vectors": each.vectors} for each in files},
        "skipped": {},
    }


def schedulers() -> list[dict[str, Any]]:
    automatic = {"name": "automatic", "label": AUTOMATIC, "aliases": None}
    return [
        automatic,
        *({"name": each.name, "label": each.title, "aliases": [*each.aliases]} for each in SCHEDULES.values()),
    ]


def models(title: str, fingerprint: str) -> list[dict[str, Any]]:
    name = title.partition(" [")[0]
    row = {"title": title, "model_name": name, "hash": fingerprint, "sha256": None, "filename": name, "config": None}
    return [row]


def options(title: str) -> dict[str, Any]:
    return {_CHECKPOINT: title, _CLIP_SKIP: 1, "samples_format": "png"}


def check_options(body: Body, title: str) -> None:
    """Take settings that change nothing. Raises InputError for another model, or any other setting."""
    check_model(body.get(_CHECKPOINT), title)
    for key, value in body.items():
        if key not in (_CHECKPOINT, "sd_checkpoint_hash") and options(title).get(key) != value:
            raise InputError(f"{short(key)} is not a setting that can be changed here", hint="send it with a request")
