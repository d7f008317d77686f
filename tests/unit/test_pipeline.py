from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import latentgen
from latentgen.checkpoints.folder import ModelBundle, save_model
from latentgen.diffusion.denoiser import make_denoiser
from latentgen.diffusion.noise import NoiseSource
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.errors import InputError, LatentgenError, RuntimeFailure
from latentgen.images.files import read_picture
from latentgen.images.metadata import MAX_BATCH_SIZE, PictureMetadata
from latentgen.images.pixels import pixels_sha256
from latentgen.pipeline import TextToImage, choose_device, choose_dtype
from latentgen.pipeline.devices import cpu_has_bfloat16
from latentgen.pipeline.text_to_image import _batches
from latentgen.request import EmbeddingUse, GenerationRequest, RequestError
from latentgen.samplers.euler import euler
from latentgen.samplers.registry import SAMPLERS
from latentgen.samplers.step import Step
from tests.tiny_bundle import tiny_bundle

REQUEST = GenerationRequest(
    prompt="a cat",
    negative_prompt="a dog",
    seed=3,
    width_px=64,
    height_px=48,
    steps=3,
    guidance=2.5,
    sampler="euler",
    schedule="leading",
)


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage(tiny_bundle())


def watch(monkeypatch: pytest.MonkeyPatch, module: torch.nn.Module) -> list[int]:
    """The batch size of every call of a module."""
    calls: list[int] = []
    forward: Callable[..., Any] = module.forward

    def counted(x: Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(len(x))
        return forward(x, *arguments, **options)

    monkeypatch.setattr(module, "forward", counted)
    return calls


@torch.inference_mode()
def test_a_picture_is_the_sum_of_its_stages(model: TextToImage) -> None:
    """The whole way, by hand: two separate passes for guidance, Euler, the VAE, rounding."""
    bundle, config = model.bundle, model.bundle.config
    schedule = NoiseSchedule.from_config(config.diffusion)
    cond, uncond = (bundle.text_encoder(bundle.tokenizer.encode([text])) for text in ("a cat", "a dog"))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        estimates = [
            make_denoiser(lambda x_t, t, c=context: bundle.unet(x_t, t, c), schedule, "epsilon")(x, sigma)
            for context in (cond, uncond)
        ]
        return estimates[1] + 2.5 * (estimates[0] - estimates[1])

    sigmas = schedule.inference_sigmas(3, "leading")
    source = NoiseSource([3])
    x = source.draw((4, 6, 8)) * (1 + sigmas[0] ** 2) ** 0.5
    latents = euler(denoise, x, sigmas, noise=lambda: source.draw((4, 6, 8)))
    pixels = bundle.vae.decode(latents / config.vae.scaling_factor)[0]
    expected = ((pixels + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()

    (result,) = model.generate([REQUEST])
    assert result.pixels.shape == (48, 64, 3)
    assert result.pixels.dtype == np.uint8
    # Guidance in one batched pass sums in another order; a rounding may fall to the other side.
    assert np.abs(result.pixels.astype(float) - expected).max() <= 1
    assert result.pixels.std() > 10, "a flat picture would prove nothing"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_and_reports_its_steps(sampler: str, model: TextToImage) -> None:
    steps: list[Step] = []
    request = replace(REQUEST, sampler=sampler)
    (result,) = model.generate([request], on_step=steps.append)
    assert [step.index for step in steps] == [0, 1, 2]
    assert result.request == request
    assert result.pixels.std() > 10


def test_eta_reaches_the_sampler(model: TextToImage) -> None:
    quiet, noisy = model.generate([replace(REQUEST, sampler="ddim", eta=eta) for eta in (0.0, 1.0)])
    assert pixels_sha256(quiet.pixels) != pixels_sha256(noisy.pixels)


@pytest.mark.parametrize("change", [{"prompt": "a ship"}, {"negative_prompt": ""}, {"guidance": 4.0}, {"seed": 4}])
def test_what_is_asked_for_reaches_the_picture(change: dict[str, Any], model: TextToImage) -> None:
    first, second = model.generate([REQUEST, replace(REQUEST, **change)])
    assert pixels_sha256(first.pixels) != pixels_sha256(second.pixels)


def test_each_distinct_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextToImage(tiny_bundle())
    calls = watch(monkeypatch, model.bundle.text_encoder)
    requests = [replace(REQUEST, prompt=prompt, seed=seed) for prompt in ("a cat", "a dog") for seed in (1, 2)]
    assert len(list(model.generate(requests, batch_size=3))) == 4
    assert calls == [1, 1]


def test_without_guidance_the_negative_prompt_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextToImage(tiny_bundle())
    texts, passes = watch(monkeypatch, model.bundle.text_encoder), watch(monkeypatch, model.bundle.unet)
    list(model.generate([replace(REQUEST, guidance=1.0, width_px=64, height_px=64)]))
    assert (texts, passes) == ([1], [1, 1, 1])


def test_batches_hold_neighbours_of_one_kind_and_order_is_kept(
    model: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "one_by_one", False)  # as on a GPU
    passes = watch(monkeypatch, model.bundle.unet)
    decodes: list[int] = []
    decode = model.bundle.vae.decode
    monkeypatch.setattr(model.bundle.vae, "decode", lambda z: (decodes.append(len(z)), decode(z))[1])
    wide = replace(REQUEST, width_px=128, steps=1)
    requests = [*(replace(REQUEST, steps=1, seed=seed) for seed in range(3)), wide]
    results = list(model.generate(requests, batch_size=2))
    assert [result.request for result in results] == requests
    assert [result.metadata.computation.batch_size for result in results] == [2, 2, 1, 1]
    # Guidance doubles a pass of the U-Net; the VAE decodes one picture at a time.
    assert (passes, decodes) == ([4, 2, 2], [1, 1, 1, 1])


def test_a_picture_is_given_out_before_the_next_is_begun(model: TextToImage) -> None:
    steps: list[Step] = []
    results = model.generate([REQUEST, REQUEST], on_step=steps.append)
    next(results)
    assert len(steps) == REQUEST.steps


def test_timings_are_of_this_picture(model: TextToImage) -> None:
    (result,) = model.generate([REQUEST])
    timings = result.timings
    assert min(timings.text_s, timings.denoise_s, timings.decode_s) > 0
    assert timings.denoise_s > timings.text_s


# What goes wrong


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"height_px": 56}, RequestError, "multiples of 16"),
        ({"steps": 1000, "sampler": "heun9"}, InputError, "no such sampler: 'heun9'"),
        ({"schedule": "odd"}, InputError, "no such schedule: 'odd'"),
    ],
)
def test_requests_are_checked_before_anything_is_drawn(
    change: dict[str, Any], error: type[LatentgenError], message: str, model: TextToImage
) -> None:
    with pytest.raises(error, match=message):
        model.generate([REQUEST, replace(REQUEST, **change)])


@pytest.mark.parametrize("size", [0, MAX_BATCH_SIZE + 1])
def test_a_batch_size_that_no_file_could_record_is_refused(size: int, model: TextToImage) -> None:
    with pytest.raises(InputError, match=f"batch size {size} must lie between 1 and 1024"):
        model.generate([REQUEST], batch_size=size)


def _poison(monkeypatch: pytest.MonkeyPatch, module: torch.nn.Module, row: int, from_call: int) -> None:
    """Make a module's answer NaN for one picture of the batch, from one call on."""
    calls = watch(monkeypatch, module)
    forward: Callable[..., Tensor] = module.forward

    def poisoned(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        answer = forward(x, *arguments, **named).clone()
        if len(calls) > from_call:
            answer[row] = float("nan")
        return answer

    monkeypatch.setattr(module, "forward", poisoned)


def test_latents_that_are_not_finite_name_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextToImage(tiny_bundle())
    _poison(monkeypatch, model.bundle.unet, row=0, from_call=1)
    with pytest.raises(RuntimeFailure, match="not finite from step 2 of 3"):
        list(model.generate([REQUEST]))


def test_one_bad_picture_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextToImage(tiny_bundle())
    model.one_by_one = False  # as on a GPU
    _poison(monkeypatch, model.bundle.unet, row=1, from_call=0)
    requests = [replace(REQUEST, guidance=1.0, seed=seed) for seed in range(3)]
    failures: list[tuple[int, str]] = []
    results = model.generate(
        requests, batch_size=3, on_failure=lambda request, failure: failures.append((request.seed, failure.message))
    )
    assert [result.seed for result in results] == [0, 2]
    assert failures == [(1, "the latents are not finite from step 1 of 3 on")]


def test_pixels_that_are_not_finite_are_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextToImage(tiny_bundle())
    monkeypatch.setattr(model.bundle.vae, "decode", lambda z: torch.full((1, 3, 48, 64), float("inf")))
    with pytest.raises(RuntimeFailure, match="decoded picture is not finite"):
        list(model.generate([REQUEST]))


def test_a_vae_that_overflows_in_half_precision_is_asked_again_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """For that picture alone: the next one comes out as it does without an overflow before it."""
    bundle = tiny_bundle()
    bundle.vae.to(torch.bfloat16)
    model = TextToImage(bundle)
    second = replace(REQUEST, seed=4)
    (alone,) = model.generate([second])
    decode = bundle.vae.decode
    dtypes: list[torch.dtype] = []

    def overflows(z: Tensor) -> Tensor:
        dtypes.append(z.dtype)
        return decode(z) * (float("inf") if len(dtypes) == 1 else 1.0)

    monkeypatch.setattr(bundle.vae, "decode", overflows)
    first, after = model.generate([REQUEST, second])
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert first.pixels.std() > 10
    assert after.metadata == alone.metadata
    # A trainer that draws samples trains the same network afterwards.
    assert not any(parameter.is_inference() for parameter in bundle.vae.parameters())


# Prompts in chunks

LONG = "a cat, " + "1 " * 75 + "and a zebra"


def test_no_word_of_a_long_prompt_is_lost(model: TextToImage) -> None:
    first, second = (replace(REQUEST, prompt=LONG + end, steps=1) for end in ("", "s"))
    drawn = [pixels_sha256(result.pixels) for result in model.generate([first, second])]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("change", "sizes"),
    [
        ({"prompt": "a dog"}, [3]),
        ({"prompt": LONG}, [1, 1, 1]),
        ({"negative_prompt": LONG}, [1, 1, 1]),
        ({"negative_prompt": LONG, "guidance": 1.0}, [3]),
    ],
)
def test_only_contexts_of_one_length_go_together(change: dict[str, Any], sizes: list[int], model: TextToImage) -> None:
    """The seed contract: a context that was filled up for a neighbour's sake would give another picture."""
    first = replace(REQUEST, guidance=change.get("guidance", 2.5))
    batches = _batches([first, replace(first, **change), first], 4, model.conditioner.chunks)
    assert [len(batch) for batch in batches] == sizes
    for batch in batches:
        conditioning = model.conditioner.encode(batch)
        alone = model.conditioner.encode(batch[-1:])
        assert torch.equal(conditioning.cond[-1:], alone.cond)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a <lora:x:y>"}, "'y' is not a scale"),
        ({"negative_prompt": "(a:9999)"}, "weight 9999"),
        ({"clip_skip": 3}, r"clip-skip 3 is more than this text encoder's layers \(1 to 2\)"),
        ({"embeddings": (EmbeddingUse(name="toy", fingerprint="0123456789"),)}, "embedding toy .* is not loaded"),
    ],
)
def test_prompts_are_checked_before_anything_is_drawn(change: dict[str, Any], message: str, model: TextToImage) -> None:
    with pytest.raises(InputError, match=message):
        model.generate([REQUEST, replace(REQUEST, **change)])


def test_clip_skip_reaches_the_picture(model: TextToImage) -> None:
    own, last, before = model.generate([replace(REQUEST, clip_skip=skip) for skip in (None, 1, 2)])
    assert pixels_sha256(own.pixels) == pixels_sha256(last.pixels) != pixels_sha256(before.pixels)


def test_encoded_prompts_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentgen.pipeline.conditioning.CONTEXTS_KEPT", 2)
    model = TextToImage(tiny_bundle())
    calls = watch(monkeypatch, model.bundle.text_encoder)
    requests = [replace(REQUEST, prompt=prompt, guidance=1.0, steps=1) for prompt in ("a", "b", "b", "c", "a")]
    results = list(model.generate(requests))
    assert len(calls) == 4, "a is encoded again, because b and c came after it; b is not"
    assert pixels_sha256(results[0].pixels) == pixels_sha256(results[4].pixels)


# The Python interface


def test_the_package_offers_its_names_lazily() -> None:
    assert latentgen.TextToImage is TextToImage
    assert latentgen.GenerationRequest is GenerationRequest
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = latentgen.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_a_folder_draws_as_the_model_in_memory_does(model: TextToImage, tmp_path: Path) -> None:
    save_model(tiny_bundle(), tmp_path / "tiny")
    loaded = TextToImage.load(tmp_path / "tiny", device="cpu", dtype="float32")
    (ours,) = model.generate([REQUEST])
    (theirs,) = loaded.draw(
        "a cat",
        negative_prompt="a dog",
        seed=3,
        height_px=48,
        steps=3,
        guidance=2.5,
        sampler="euler",
        schedule="leading",
    )
    assert theirs.request == REQUEST
    assert pixels_sha256(ours.pixels) == pixels_sha256(theirs.pixels)
    assert theirs.metadata.model == "tiny"


def test_a_saved_picture_carries_its_request(model: TextToImage, tmp_path: Path) -> None:
    (result,) = model.generate([REQUEST])
    result.save(tmp_path / "a.png")
    pixels, text = read_picture(tmp_path / "a.png")
    assert np.array_equal(pixels, np.asarray(result.image))
    assert text.document is not None
    metadata = PictureMetadata.from_json(text.document)
    assert metadata == result.metadata
    assert metadata.pixels_sha256 == pixels_sha256(pixels)
    assert str(tmp_path) not in (text.parameters or "") + str(text.document)
    with pytest.raises(InputError, match=r"a\.png exists \(overwrite=True replaces it\)"):
        result.save(tmp_path / "a.png")
    result.save(tmp_path / "a.png", overwrite=True)
    with pytest.raises(InputError, match="ending"):
        result.save(tmp_path / "a.tiff")


def test_without_a_seed_there_is_a_random_one(model: TextToImage) -> None:
    first, second = model.draw("a cat", count=2, steps=1)
    (other,) = model.draw("a cat", steps=1)
    assert second.seed == first.seed + 1
    assert other.seed not in (first.seed, second.seed)
    assert model.steps("a cat", steps=1).result.seed not in (first.seed, second.seed, other.seed)
    (again,) = model.draw("a cat", seed=first.seed, steps=1)
    assert pixels_sha256(again.pixels) == pixels_sha256(first.pixels)


def test_bfloat16_draws_the_same_scene(model: TextToImage) -> None:
    bundle: ModelBundle = tiny_bundle()
    for part in (bundle.unet, bundle.vae, bundle.text_encoder):
        part.to(torch.bfloat16)
    (half,) = TextToImage(bundle).generate([REQUEST])
    (full,) = model.generate([REQUEST])
    assert half.metadata.computation.dtype == "bfloat16"
    difference = np.abs(half.pixels.astype(float) - full.pixels.astype(float))
    assert difference.mean() < 8, "bfloat16 has 8 bits of mantissa: a few 255ths after three steps and the VAE"


def test_devices_and_dtypes_that_are_not_there_are_named() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"no device cuda:99 here \(present: .*cpu\)"):
        choose_device("cuda:99")
    assert choose_dtype("auto", torch.device("cpu"), fast=False) == torch.float32
    assert choose_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if cpu_has_bfloat16() else torch.float32)
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16
    with pytest.raises(InputError, match="float16 is for GPUs"):
        choose_dtype("float16", torch.device("cpu"))
    with pytest.raises(InputError, match="no dtype int8"):
        choose_dtype("int8", torch.device("cpu"))
