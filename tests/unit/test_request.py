from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgen.errors import InputError
from latentgen.presets import EMBEDDED, SD15
from latentgen.request import (
    MAX_GUIDANCE,
    MAX_PROMPT_BYTES,
    MAX_SEED,
    EmbeddingUse,
    GenerationRequest,
    Hires,
    InitPicture,
    LoRAUse,
    RequestError,
    check_fits,
    complete_request,
)

REQUEST = GenerationRequest(
    prompt="a lighthouse",
    negative_prompt="fog",
    seed=7,
    width_px=256,
    height_px=512,
    steps=20,
    guidance=7.5,
    sampler="euler",
    schedule="karras",
)


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text.strip() != ""),
    seed=st.integers(0, MAX_SEED),
    guidance=st.floats(0, MAX_GUIDANCE),
    eta=st.floats(0, 1),
)
def test_json_gives_the_same_request_back(prompt: str, seed: int, guidance: float, eta: float) -> None:
    request = replace(REQUEST, prompt=prompt, seed=seed, guidance=guidance, eta=eta)
    assert GenerationRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


FULL = replace(
    REQUEST,
    guidance_rescale=0.7,
    guidance_interval=(0.1, 0.8),
    deep_cache=2,
    clip_skip=2,
    loras=(
        LoRAUse(name="ink", fingerprint="0123456789", scale=0.8),
        LoRAUse(name="fog", fingerprint="abcdef0123", scale=-1),
    ),
    embeddings=(EmbeddingUse(name="my-boat", fingerprint="abcdef0123"),),
    init=InitPicture(sha256="ab" * 32, strength=0.5, mask_sha256="cd" * 32, mask_blur_px=4, outpaint=(0, 16, 0, 32)),
    hires=Hires(scale=1.5, strength=0.4),
    rng="nv",
)


def test_every_part_comes_back_from_json() -> None:
    assert GenerationRequest.from_json(json.loads(json.dumps(FULL.to_json()))) == FULL


def test_what_says_nothing_is_not_written_and_so_older_versions_can_read_the_rest() -> None:
    names = "prompt negative_prompt seed width_px height_px steps guidance sampler schedule eta"
    assert set(REQUEST.to_json()) == set(names.split())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loras", {"name": "ink"}),
        ("loras", [{"name": "ink"}]),
        ("loras", ["ink"]),
        ("loras", [{"name": "ink", "fingerprint": "../../etc", "scale": 1.0}]),
        ("loras", [{"name": "ink", "fingerprint": "0123456789", "scale": float("nan")}]),
        ("loras", [{"name": "ink", "fingerprint": "0123456789", "scale": 1.0}] * 33),
        ("embeddings", [{"name": "a\x00b", "fingerprint": "0123456789"}]),
        ("init", {"sha256": "ab" * 32, "strength": 0}),
        ("init", {"sha256": "ab" * 32, "strength": 1.1}),
        ("init", {"sha256": "ab" * 32, "outpaint": [1, 2, 3]}),
        ("init", {"sha256": "ab" * 32, "outpaint": [1, 2, 3, -4]}),
        ("init", {"sha256": "ab" * 32, "mask_blur_px": -1}),
        ("init", {"sha256": 5}),
        ("init", {"sha256": "x"}),
        ("init", {"sha256": "ab" * 32, "mask_sha256": "cd"}),
        ("init", {"sha256": "ab" * 32, "invert_mask": 1}),
        ("init", []),
        ("hires", {"scale": 1.0}),
        ("hires", {"scale": 9.0}),
        ("hires", {"strength": 0.0}),
        ("hires", {"upscaler": "x"}),
        ("guidance_interval", [0.5]),
        ("guidance_interval", [0.5, 0.5]),
        ("guidance_interval", [0.0, 1.5]),
        ("guidance_interval", "all"),
        ("deep_cache", 0),
        ("deep_cache", 1001),
        ("deep_cache", 2.0),
        ("guidance_rescale", 1.5),
        ("clip_skip", 0),
        ("clip_skip", 2.0),
    ],
)
def test_a_broken_part_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError):
        GenerationRequest.from_json({**REQUEST.to_json(), name: value})


def test_a_whole_guidance_is_the_float_it_equals() -> None:
    assert json.dumps(replace(REQUEST, guidance=7).to_json()) == json.dumps(replace(REQUEST, guidance=7.0).to_json())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", "", "prompt is empty"),
        ("prompt", " \n\t", "prompt is empty"),
        ("prompt", 3, "prompt must be text"),
        ("prompt", "ab\udce9", "byte 0xe9 at character 2"),
        ("prompt", "ab\ud800", "surrogate U+D800 at character 2"),
        ("prompt", "a\x00b", "control character U+0000 at character 1"),
        ("prompt", "a\x1b[31m", "control character U+001B at character 1"),
        ("prompt", "a\x9bb", "control character U+009B"),
        ("prompt", "ü" * (MAX_PROMPT_BYTES // 2 + 1), f"the limit is {MAX_PROMPT_BYTES}"),
        ("negative_prompt", "a\x07", "negative-prompt holds the control character U+0007"),
        ("seed", -1, "seed -1 is out of range (0 to 4294967295)"),
        ("seed", 2**32, "seed 4294967296 is out of range"),
        ("seed", 1.0, "seed must be a whole number"),
        ("seed", True, "seed must be a whole number"),
        ("width_px", 0, "width 0 is out of range"),
        ("height_px", -64, "height -64 is out of range"),
        ("width_px", 10**30, "width 100000000000… (31 characters) is out of range"),
        ("steps", 0, "steps 0 is out of range (1 to 1000)"),
        ("guidance", float("nan"), "guidance nan is out of range"),
        ("guidance", float("inf"), "guidance inf is out of range"),
        ("guidance", -0.5, "guidance -0.5 is out of range"),
        ("guidance", "7", "guidance must be a number"),
        ("guidance", 10**400, "is out of range"),
        ("eta", 1.5, "eta 1.5 is out of range (0 to 1)"),
        ("sampler", "", "sampler must be a name"),
        ("schedule", None, "schedule must be a name"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_birth(field: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        replace(REQUEST, **{field: value})
    assert message in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("seed", [0, 1, MAX_SEED])
def test_the_ends_of_the_seed_range_are_seeds(seed: int) -> None:
    assert replace(REQUEST, seed=seed).seed == seed


def test_zero_is_a_guidance_and_line_breaks_are_text() -> None:
    assert replace(REQUEST, guidance=0, prompt="a\n\tb").guidance == 0.0


@pytest.mark.parametrize("change", [{"extra": 1}, {"prompt": ...}], ids=["an unknown field", "a missing field"])
def test_json_of_another_version_is_refused(change: dict[str, Any]) -> None:
    value = {key: field for key, field in {**REQUEST.to_json(), **change}.items() if field is not ...}
    with pytest.raises(InputError, match=next(iter(change))):
        GenerationRequest.from_json(value)


@pytest.mark.parametrize(("side", "nearest"), [(500, "nearest: 448, 512"), (63, "nearest: 64")])
def test_a_side_off_the_grid_names_the_nearest(side: int, nearest: str) -> None:
    with pytest.raises(RequestError, match=r"height .* sizes are multiples of 64") as error:
        check_fits(replace(REQUEST, height_px=side), SD15)
    assert error.value.hint == nearest
    assert error.value.field == "height"


def test_more_steps_than_the_schedule_has_are_refused() -> None:
    short = replace(SD15, diffusion=replace(SD15.diffusion, num_train_timesteps=10))
    check_fits(replace(REQUEST, steps=10), short)
    with pytest.raises(RequestError, match="steps 11 is more than the 10"):
        check_fits(replace(REQUEST, steps=11), short)


def test_what_is_not_said_is_the_models_default() -> None:
    defaults = replace(EMBEDDED.defaults, guidance_interval=(0.2, 1.0))
    model = replace(EMBEDDED, defaults=defaults)
    assert complete_request(model, prompt="a boat", seed=0).guidance_interval == (0.2, 1.0)
    throughout = complete_request(model, prompt="a boat", seed=0, guidance_interval=(0.0, 1.0))
    assert throughout.guidance_interval == (0.0, 1.0)
    assert GenerationRequest.from_json(throughout.to_json()) == throughout, "whatever the model's own is"
    request = complete_request(EMBEDDED, prompt="a boat", seed=0, steps=3, guidance=0.0)
    assert (request.steps, request.guidance) == (3, 0.0)
    assert (request.width_px, request.height_px) == (EMBEDDED.defaults.width_px, EMBEDDED.defaults.height_px)
    assert (request.sampler, request.schedule) == (EMBEDDED.defaults.sampler, EMBEDDED.defaults.schedule)
