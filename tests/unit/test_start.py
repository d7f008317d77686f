"""Where drawing begins, and what of a picture stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from latentgen.cli.init_pictures import InitFiles
from latentgen.cli.plan import Entry, Flags, plan_requests
from latentgen.diffusion.noise import NoiseSource
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.diffusion.strength import check_passes, hires_size, total_steps
from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure
from latentgen.images.inputs import fit
from latentgen.images.pixels import Pixels, pixels_sha256
from latentgen.pipeline import TextToImage
from latentgen.pipeline.init_picture import Canvas, InitPictures
from latentgen.pipeline.start import start_from_picture
from latentgen.request import GenerationRequest, Hires, InitPicture, RequestError
from latentgen.samplers.registry import SAMPLERS, get_sampler
from latentgen.samplers.step import Step
from tests.tiny import TINY_MODEL, TINY_UNET, tiny_unet
from tests.tiny_bundle import tiny_bundle

REQUEST = GenerationRequest(
    prompt="a cat",
    seed=3,
    width_px=64,
    height_px=48,
    steps=4,
    guidance=2.0,
    sampler="euler_a",
    schedule="leading",
)


def a_picture(height: int = 48, width: int = 64, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def a_mask(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A white block whose edges cut through latent cells."""
    mask = np.zeros((height, width), np.uint8)
    mask[10 : height - 10, 12 : width - 20] = 255
    return mask


def by_hash(*pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    return {pixels_sha256(each): each for each in pictures}


def starting_from(picture: Pixels, mask: NDArray[np.uint8] | None = None, **given: object) -> GenerationRequest:
    init = InitPicture(
        sha256=pixels_sha256(picture),
        mask_sha256=None if mask is None else pixels_sha256(mask),
        **given,  # pyright: ignore[reportArgumentType]  fields of InitPicture by name
    )
    return replace(REQUEST, init=init)


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage(tiny_bundle())


def canvas_of(request: GenerationRequest, *pictures: NDArray[np.uint8]) -> Canvas:
    canvas = InitPictures(by_hash(*pictures), lambda x: x, 8).canvas(request)
    assert canvas is not None
    return canvas


# Steps


@pytest.mark.parametrize(
    ("steps", "strength", "left"), [(30, 0.6, 18), (30, 1.0, 30), (50, 0.75, 37), (4, 0.25, 1), (20, 0.99, 19)]
)
def test_strength_leaves_the_published_number_of_steps(steps: int, strength: float, left: int) -> None:
    request = replace(REQUEST, steps=steps, init=InitPicture(sha256="ab" * 32, strength=strength))
    assert total_steps(request) == left
    sigmas = NoiseSchedule.from_config(TINY_MODEL.diffusion).inference_sigmas(steps, "leading")
    latents = torch.zeros((1, 4, 2, 2))
    start = start_from_picture(sigmas, NoiseSource([1]), latents, strength)
    assert torch.equal(start.sigmas, sigmas[-left - 1 :])


def test_a_strength_that_leaves_no_step_names_one_that_does() -> None:
    request = replace(REQUEST, steps=30, init=InitPicture(sha256="ab" * 32, strength=0.03))
    with pytest.raises(RequestError, match=r"strength leaves none of 30 steps to draw \(0.034 is enough\)"):
        check_passes(request, 8)
    check_passes(replace(request, init=InitPicture(sha256="ab" * 32, strength=0.034)), 8)
    with pytest.raises(RequestError, match=r"hires-strength leaves none of 4 steps .*0\.25 is enough"):
        check_passes(replace(REQUEST, hires=Hires(strength=0.1)), 8)


@torch.inference_mode()
def test_a_picture_is_noised_to_the_first_level_that_is_visited() -> None:
    sigmas = torch.tensor([14.0, 6.0, 2.0, 1.0, 0.0])
    latents = torch.randn((2, 4, 3, 3))
    start = start_from_picture(sigmas, NoiseSource([5, 6]), latents, 0.5)
    noise = NoiseSource([5, 6]).draw((4, 3, 3))
    torch.testing.assert_close(start.x, latents + 2.0 * noise)
    alone = start_from_picture(sigmas, NoiseSource([5, 6]), latents, 1.0)
    torch.testing.assert_close(alone.x, noise * (1 + 14.0**2) ** 0.5)
    other = start_from_picture(sigmas, NoiseSource([5, 6]), latents + 9, 1.0)
    assert torch.equal(alone.x, other.x), "strength 1 ignores the picture"


@pytest.mark.parametrize("strength", [0.8, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.inference_mode()
def test_what_is_held_comes_out_as_it_went_in(sampler: str, strength: float) -> None:
    """With every sampler, whatever the network says; and all the way down it is the picture under noise."""
    sigmas = NoiseSchedule.from_config(TINY_MODEL.diffusion).inference_sigmas(8, "karras")
    latents = torch.randn((1, 4, 8, 8)) + 20  # so far from 0 that the picture cannot be missed beneath the noise
    redrawn = torch.zeros((1, 1, 8, 8), dtype=torch.bool)
    redrawn[..., 2:5, 3:7] = True
    source = NoiseSource([1])
    start = start_from_picture(sigmas, source, latents, strength, redrawn=redrawn)
    held: list[float] = []

    def on_step(step: Step) -> None:
        excess = (step.x - latents)[(~redrawn).expand_as(step.x)] / step.sigma
        held.append(float(excess.square().mean().sqrt()))

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x) * 3

    def noise() -> Tensor:
        return source.draw((4, 8, 8))

    out = get_sampler(sampler)(start.constrain(network), start.x, start.sigmas, noise=noise, on_step=on_step)
    outside = (~redrawn).expand_as(out)
    torch.testing.assert_close(out[outside], latents[outside], rtol=1e-4, atol=1e-4)
    assert (out - latents)[~outside].abs().max() > 0.5
    assert all(0.8 < spread < 1.2 for spread in held), "192 values of standard normal noise, and nothing else"


# The canvas


def test_a_picture_of_the_size_that_is_drawn_is_not_touched() -> None:
    picture = a_picture()
    assert np.array_equal(canvas_of(starting_from(picture), picture).pixels, picture)
    assert fit(picture, 64, 48) is not picture


def test_another_size_is_covered_and_cut_in_the_middle() -> None:
    wide = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2)
    fitted = fit(wide, 64, 48)
    assert fitted.shape == (48, 64, 3)
    assert np.array_equal(fitted[0, :, 0], np.arange(68, 132)), "no resizing: the height is right already"


def test_cells_with_any_pixel_to_redraw_are_free() -> None:
    picture, mask = a_picture(), np.zeros((48, 64), np.uint8)
    mask[15, 16] = 255
    cells = canvas_of(starting_from(picture, mask), picture, mask).redrawn_cells(8)
    assert cells.shape == (1, 1, 6, 8)
    assert cells.nonzero().tolist() == [[0, 0, 1, 2]]


def test_a_mask_that_vanishes_at_the_size_that_is_drawn_is_refused(model: TextToImage) -> None:
    picture, mask = a_picture(384, 512), np.zeros((384, 512), np.uint8)
    mask[:, 100] = 255
    with pytest.raises(InputError, match="the mask is too thin: drawn at 64x48, nothing of it is left"):
        model.generate([starting_from(picture, mask)], pictures=by_hash(picture, mask))
    mask[:, 100:120] = 255
    assert canvas_of(starting_from(picture, mask), picture, mask).redrawn_cells(8).any()


def test_an_inverted_mask_is_the_mask_of_the_rest() -> None:
    picture, mask = a_picture(), a_mask()
    inverted = canvas_of(starting_from(picture, mask, invert_mask=True), picture, mask)
    other = canvas_of(starting_from(picture, 255 - mask), picture, 255 - mask)
    assert np.array_equal(inverted.redrawn, other.redrawn)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(inverted.opacity, other.opacity)  # pyright: ignore[reportArgumentType]


def test_the_drawn_picture_is_laid_over_by_the_masks_brightness() -> None:
    opacity = np.array([[0, 51, 255]], np.uint8)
    canvas = Canvas(np.full((1, 3, 3), 100, np.uint8), opacity >= 128, opacity)
    assert canvas.finish(np.full((1, 3, 3), 200, np.uint8))[0, :, 0].tolist() == [100, 120, 200]


def test_outpainting_keeps_the_picture_and_fades_in_beyond_it() -> None:
    picture = a_picture(32, 40)
    canvas = canvas_of(starting_from(picture, outpaint=(16, 0, 8, 16), mask_blur_px=2), picture)
    inner = np.s_[:32, 16:56]
    assert np.array_equal(canvas.pixels[inner], picture)
    assert canvas.opacity is not None
    assert canvas.redrawn is not None
    assert canvas.opacity[inner].max() == 0
    assert canvas.opacity[0, :16].tolist() == [255] * 12 + [204, 153, 102, 51]
    assert canvas.opacity[40:].min() == 255
    assert canvas.redrawn.sum() == 64 * 48 - 32 * 40


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ((), "the picture .* was not given"),
        ((a_picture(),), "the mask .* was not given"),
        ((a_picture(), a_mask(), a_mask(40, 64)), "differ in size: 64x40 and 64x48"),
        ((a_picture(), a_mask(), np.zeros((48, 64), np.uint8)), "the mask is all black"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_before_drawing(
    pictures: Sequence[NDArray[np.uint8]], message: str, model: TextToImage
) -> None:
    mask = pictures[-1] if len(pictures) == 3 else a_mask()
    with pytest.raises(InputError, match=message):
        model.generate([starting_from(a_picture(), mask)], pictures=by_hash(*pictures))


def test_a_picture_under_another_ones_hash_is_refused(model: TextToImage) -> None:
    with pytest.raises(InputError, match="is not the one that was asked for"):
        model.generate([starting_from(a_picture())], pictures={pixels_sha256(a_picture()): a_picture(seed=1)})


# Whole pictures


def draw(model: TextToImage, request: GenerationRequest, *pictures: NDArray[np.uint8], **given: int) -> list[Pixels]:
    requests = [replace(request, seed=seed) for seed in (3, 4, 5)]
    return [result.pixels for result in model.generate(requests, pictures=by_hash(*pictures), **given)]


@pytest.mark.parametrize("blur", [0, 3])
def test_pixels_outside_the_mask_are_the_pictures_own(blur: int, model: TextToImage) -> None:
    picture, mask = a_picture(), a_mask()
    request = starting_from(picture, mask, strength=1.0, mask_blur_px=blur)
    opacity = canvas_of(request, picture, mask).opacity
    assert opacity is not None
    assert (opacity == 0).mean() > 0.2
    for drawn in draw(model, request, picture, mask):
        assert np.array_equal(drawn[opacity == 0], picture[opacity == 0])
        assert (drawn[opacity == 255] != picture[opacity == 255]).mean() > 0.5


def test_the_picture_within_an_outpainted_one_is_exact(model: TextToImage) -> None:
    picture = a_picture(32, 40)
    request = starting_from(picture, strength=1.0, outpaint=(16, 0, 8, 16), mask_blur_px=4)
    (drawn, *_) = draw(model, request, picture)
    assert drawn.shape == (48, 64, 3)
    assert np.array_equal(drawn[:32, 16:56], picture)


@pytest.mark.parametrize("kind", ["img2img", "inpaint", "hires"])
def test_a_picture_does_not_depend_on_how_many_are_drawn(
    kind: str, model: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, mask = a_picture(), a_mask()
    request = starting_from(picture, mask if kind == "inpaint" else None)
    if kind == "hires":
        request = replace(REQUEST, hires=Hires(scale=1.5, strength=0.5))
    together = draw(model, request, picture, mask)
    alone = [
        next(iter(model.generate([replace(request, seed=seed)], pictures=by_hash(picture, mask)))).pixels
        for seed in (3, 4, 5)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], together[1])
    monkeypatch.setattr(model, "one_by_one", False)
    batched = draw(model, request, picture, mask, batch_size=3)
    # Sums in another order move a value by 1e-6; a byte moves where that crosses a rounding edge.
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(together, batched, strict=True)) <= 1


def test_the_second_pass_redraws_the_first_picture_larger(model: TextToImage) -> None:
    steps: list[tuple[int, int, tuple[int, ...]]] = []
    request = replace(REQUEST, hires=Hires(scale=1.6, strength=0.5))
    assert hires_size(request, 16) == (96, 80)
    (result,) = model.generate(
        [request], on_step=lambda step: steps.append((step.index, step.total, tuple(step.x.shape)))
    )
    assert result.pixels.shape == (80, 96, 3)
    small, large = (1, 4, 6, 8), (1, 4, 10, 12)
    assert steps == [*((i, 4, small) for i in range(4)), *((i, 2, large) for i in range(2))]
    assert len(steps) == total_steps(request)


def test_a_picture_that_fails_in_the_first_pass_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextToImage(tiny_bundle())
    forward = model.bundle.unet.forward

    def poisoned(x: Tensor, t: Tensor, context: Tensor, **named: Any) -> Tensor:
        answer = forward(x, t, context, **named).clone()
        if len(x) == 3 and x.shape[-1] == 8:
            answer[1] = float("nan")
        return answer

    monkeypatch.setattr(model.bundle.unet, "forward", poisoned)
    model.one_by_one = False
    request = replace(REQUEST, guidance=1.0, hires=Hires(scale=1.5, strength=0.5))
    failures: list[str] = []
    requests = [replace(request, seed=seed) for seed in (3, 4, 5)]
    results = model.generate(requests, batch_size=3, on_failure=lambda _, failure: failures.append(failure.message))
    assert [result.seed for result in results] == [3, 5]
    assert failures == ["the latents are not finite from step 1 of 4 on"]
    with pytest.raises(RuntimeFailure, match="not finite"):
        list(model.generate(requests, batch_size=3))


def test_a_model_with_other_channels_is_refused() -> None:
    bundle = tiny_bundle()
    bundle.config = replace(bundle.config, unet=replace(bundle.config.unet, in_channels=8))
    with pytest.raises(InputError, match="takes 8 channels"):
        TextToImage(bundle).generate([REQUEST])


def test_an_inpainting_model_draws_without_a_mask_too() -> None:
    """All of it is redrawn: mask 1, and nothing that is kept."""
    bundle = tiny_bundle()
    config = replace(TINY_UNET, in_channels=9)
    bundle.unet, bundle.config = tiny_unet(config), replace(bundle.config, unet=config)
    seen: list[Tensor] = []
    bundle.unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model = TextToImage(bundle)
    (result,) = model.generate([replace(REQUEST, hires=Hires(scale=1.5, strength=0.5))])
    assert result.pixels.shape[1] == 96
    assert {tuple(x.shape[1:2]) for x in seen} == {(9,)}
    assert all(bool((x[:, 4] == 1).all()) for x in seen)
    grey, _ = bundle.vae.encode(torch.zeros((1, 3, 48, 64)))
    torch.testing.assert_close(seen[0][:1, 5:], grey.detach() * TINY_MODEL.vae.scaling_factor)


def test_a_second_pass_and_a_mask_are_refused_together(model: TextToImage) -> None:
    request = replace(starting_from(a_picture(), a_mask()), hires=Hires())
    with pytest.raises(RequestError, match=r"hires redraws the whole picture.*draw it in two runs"):
        model.generate([request], pictures=by_hash(a_picture(), a_mask()))


# What Python code gives


@pytest.fixture(scope="module")
def drawing() -> TextToImage:
    return TextToImage(tiny_bundle())


@pytest.mark.parametrize("kind", ["path", "str", "picture", "array"])
def test_python_starts_from_what_the_command_line_starts_from(kind: str, drawing: TextToImage, tmp_path: Path) -> None:
    """A picture with an alpha channel, which is laid over white, and its mask: the same request, the same pixels."""
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    rgba = np.dstack([a_picture(50, 70), a_picture(50, 70)[..., 0]])
    Image.fromarray(rgba).save(photo)
    Image.fromarray(a_mask(50, 70)).save(mask)
    files = InitFiles()
    flags = Flags(seed=3, steps=4, init_image=photo, mask=mask, strength=0.6, width_px=80)
    (request,) = plan_requests([Entry("a cat", flags)], TINY_MODEL, init_files=files)
    (theirs,) = drawing.generate([request], pictures=files)
    opaque = np.array(Image.alpha_composite(Image.new("RGBA", (70, 50), "white"), Image.fromarray(rgba)).convert("RGB"))
    given: Any = {
        "path": (photo, mask),
        "str": (str(photo), str(mask)),
        "picture": (Image.open(photo), Image.open(mask)),
        "array": (opaque, a_mask(50, 70)),
    }[kind]
    asked: Any = {"seed": 3, "steps": 4, "init_image": given[0], "mask": given[1], "strength": 0.6, "width_px": 80}
    (ours,) = drawing.draw("a cat", **asked)
    assert ours.request == theirs.request
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert np.array_equal(drawing.steps("a cat", **asked).result.pixels, ours.pixels)


@pytest.mark.parametrize("kind", [3, 2], ids=["whole", "one tag of another type"])
def test_python_has_the_defaults_of_the_command_line(kind: int, drawing: TextToImage, tmp_path: Path) -> None:
    """Strength and size of a picture, turned as its EXIF says; and of a second pass."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0213] = 6, 1
    data = exif.tobytes().replace(b"\x02\x13\0\3", bytes((2, 0x13, 0, kind)))
    Image.fromarray(a_picture(200, 100)).save(tmp_path / "photo.png", exif=data)
    flags = Flags(seed=3, steps=4, init_image=tmp_path / "photo.png", hires="1.5x")
    (request,) = plan_requests([Entry("a cat", flags)], TINY_MODEL)
    with Image.open(tmp_path / "photo.png") as photo:
        (ours,) = drawing.draw("a cat", seed=3, steps=4, init_image=photo, hires=1.5)
    assert ours.request == request
    assert (ours.request.width_px, ours.request.height_px) == (80, 32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": a_mask()}, "mask is for init_image, which is not given"),
        ({"strength": 0.5}, "strength is for init_image, which is not given"),
        ({"init_image": a_picture(), "init": InitPicture(sha256="0" * 64)}, "init and init_image contradict"),
        ({"init_image": a_picture() / 255}, r"init_image must be bytes of \(H, W, 3\), not float64 of \(48, 64, 3\)"),
        ({"init_image": a_mask()}, r"init_image must be bytes of \(H, W, 3\), not uint8 of \(48, 64\)"),
        ({"init_image": a_picture(), "mask": a_mask() > 0}, r"mask must be bytes of \(H, W\), not bool"),
        ({"init_image": a_picture(), "mask": a_mask(32)}, "the mask and the picture differ in size"),
        ({"init_image": Image.new("F", (64, 48))}, "a picture of the mode F cannot be drawn from"),
        ({"init_image": a_picture(), "strength": 2}, "strength 2 is out of range"),
        ({"hires": 99.0}, "hires 99"),
    ],
)
def test_what_python_cannot_start_from(given: dict[str, Any], message: str, drawing: TextToImage) -> None:
    for draw in (drawing.draw, drawing.steps):
        with pytest.raises(InputError, match=message):
            draw("a cat", seed=3, **given)


def test_a_file_to_start_from_must_be_there(drawing: TextToImage, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        drawing.draw("a cat", init_image=tmp_path / "none.png")
