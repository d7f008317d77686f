from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentgen.checkpoints.folder import ModelBundle, save_vae
from latentgen.checkpoints.lora import LoRAWeights, write_lora
from latentgen.checkpoints.lora_names import is_target, kohya_name
from latentgen.config import VAEConfig
from latentgen.errors import InputError, LatentgenError, ModelLoadError, ModelNotFoundError
from latentgen.images.pixels import pixels_sha256
from latentgen.models.lora import LowRankUpdate, layers_of
from latentgen.pipeline import TextToImage
from latentgen.pipeline.adapters import Adapters
from latentgen.request import GenerationRequest
from tests.tiny import TINY_VAE, tiny_vae
from tests.tiny_bundle import tiny_bundle

REQUEST = GenerationRequest(
    prompt="a cat",
    seed=3,
    width_px=64,
    height_px=48,
    steps=2,
    guidance=2.5,
    sampler="euler",
    schedule="leading",
)
TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FC1 = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def update(layer: torch.nn.Linear | torch.nn.Conv2d, rank: int, seed: int) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(seed)
    out, into, *kernel = layer.weight.shape
    down = torch.randn(rank, into, *kernel, generator=generator) * 0.1
    up = torch.randn(out, rank, *[1 for _ in kernel], generator=generator)
    return LowRankUpdate(down, up, alpha=1.5)


def lora(bundle: ModelBundle, seed: int, *, part: str = "") -> LoRAWeights:
    """A LoRA of every layer that may have one and whose name begins with `part`."""
    layers = layers_of(bundle.unet, bundle.text_encoder)
    return LoRAWeights(
        {
            name: update(layer, 2, seed)
            for name, layer in layers.items()
            if is_target(name, "all") and name.startswith(part)
        },
        "kohya",
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two LoRAs for the tiny model: one of everything, one of the U-Net alone."""
    bundle = tiny_bundle()
    paths = tmp_path / "ink.safetensors", tmp_path / "pen.safetensors"
    write_lora(paths[0], lora(bundle, 1), "kohya")
    write_lora(paths[1], lora(bundle, 2, part="unet."), "diffusers")
    return paths


def state(bundle: ModelBundle) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part in ("unet", "text_encoder")
        for name, tensor in getattr(bundle, part).state_dict().items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_the_sum_in_float32_rounded_once(dtype: torch.dtype, files: tuple[Path, Path]) -> None:
    bundle, base = tiny_bundle(), tiny_bundle()
    for each in (bundle, base):
        each.unet.to(dtype)
        each.text_encoder.to(dtype)
    adapters = Adapters(bundle)
    adapters.use((adapters.add(files[0], scale=0.8), adapters.add(files[1], scale=-0.3)))
    layers, before = (layers_of(each.unet, each.text_encoder) for each in (bundle, base))
    first, second = lora(base, 1).modules, lora(base, 2, part="unet.").modules
    for name, layer in layers.items():
        expected = before[name].weight.double()
        for scale, updates in ((0.8, first), (-0.3, second)):
            if name in updates:
                down, up = updates[name].down.flatten(1).double(), updates[name].up.flatten(1).double()
                expected = expected + scale * 1.5 / 2 * (up @ down).reshape(expected.shape)
        # A float32 sum is a few units of its last place off. Rounded to bf16 hardly any number tells: then by one unit.
        is_half = dtype == torch.bfloat16
        torch.testing.assert_close(layer.weight, expected.to(dtype), atol=1e-6, rtol=2**-7 if is_half else 1e-5)
        assert not is_half or (layer.weight == expected.to(dtype)).float().mean() > 0.99
        assert torch.equal(layer.weight, before[name].weight) == (name not in first and name not in second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_there_comes_back_bit_by_bit(dtype: torch.dtype, files: tuple[Path, Path]) -> None:
    bundle = tiny_bundle()
    bundle.unet.to(dtype)
    base = state(bundle)
    adapters = Adapters(bundle)
    ink, pen = (adapters.add(path) for path in files)
    adapters.use((ink,))
    with_ink = state(bundle)
    assert not same(base, with_ink)
    for others in ((pen,), (ink, pen), (replace(ink, scale=-2.0),), ()):
        adapters.use(others)
        assert not same(with_ink, state(bundle))
    assert same(base, state(bundle))
    adapters.use((pen,))
    adapters.use((ink,))
    assert same(with_ink, state(bundle)), "nothing of the one that was there before is left"


def test_pictures_of_one_run_are_those_of_separate_models(files: tuple[Path, Path]) -> None:
    model = TextToImage(tiny_bundle())
    ink, pen = (model.add_lora(path, scale=0.7) for path in files)
    sets = [(), (ink,), (ink, pen), (), (pen,), (ink,)]
    drawn = [pixels_sha256(r.pixels) for r in model.generate([replace(REQUEST, loras=loras) for loras in sets])]
    alone: list[str] = []
    for loras in sets:
        other = TextToImage(tiny_bundle())
        for path in files:
            other.add_lora(path)
        other.adapters.use_for_good(loras)
        (result,) = other.generate([replace(REQUEST, loras=loras)])
        alone.append(pixels_sha256(result.pixels))
    assert drawn == alone
    assert len(set(drawn)) == 4
    assert drawn[0] == drawn[3]
    assert model.fingerprint == TextToImage(tiny_bundle()).fingerprint


def test_scale_0_is_the_model_itself(files: tuple[Path, Path]) -> None:
    bundle = tiny_bundle()
    base = state(bundle)
    adapters = Adapters(bundle)
    adapters.use((adapters.add(files[0], scale=0.0),))
    assert same(base, state(bundle))


def test_only_layers_that_change_are_kept(files: tuple[Path, Path]) -> None:
    bundle = tiny_bundle()
    adapters = Adapters(bundle)
    kept = adapters._originals
    assert kept == {}
    adapters.use((adapters.add(files[1]),))
    assert set(kept) == set(lora(bundle, 2, part="unet.").modules)
    adapters.use(())
    assert kept == {}


def test_merged_for_good_keeps_nothing_and_says_so(files: tuple[Path, Path]) -> None:
    model = TextToImage(tiny_bundle())
    ink = model.add_lora(files[0])
    model.adapters.use_for_good((ink,))
    assert model.adapters._originals is None
    assert len(list(model.generate([replace(REQUEST, loras=(ink,))]))) == 1
    with pytest.raises(InputError, match="merged for good"):
        model.generate([REQUEST])


def test_a_merge_that_fails_leaves_the_model_as_it_was(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle()
    base = state(bundle)
    adapters = Adapters(bundle)
    ink = adapters.add(files[0])
    delta: Callable[..., torch.Tensor] = LowRankUpdate.delta
    calls = iter(range(100))

    def fail_at_the_tenth(self: LowRankUpdate, shape: torch.Size) -> torch.Tensor:
        if next(calls) == 10:
            raise MemoryError
        return delta(self, shape)

    monkeypatch.setattr(LowRankUpdate, "delta", fail_at_the_tenth)
    with pytest.raises(MemoryError):
        adapters.use((ink,))
    assert same(base, state(bundle))
    adapters.use(())
    assert same(base, state(bundle))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a cat <lora:pen:0.5>"}, "prompt holds <lora:pen>, which no LoRA of the request stands for"),
        ({"negative_prompt": "<lora:ink:0.5>"}, "negative-prompt holds <lora:ink>"),
        ({"loras": ()}, None),
    ],
)
def test_a_tag_that_would_do_nothing_is_refused(
    change: dict[str, object], message: str | None, files: tuple[Path, Path]
) -> None:
    model = TextToImage(tiny_bundle())
    request = replace(REQUEST, prompt="a cat <lora:ink:0.5>", loras=(model.add_lora(files[0], scale=0.5),))
    assert len(list(model.generate([request]))) == 1
    with pytest.raises(InputError, match=message or "<lora:ink>"):
        model.generate([replace(request, **change)])


def test_a_lora_that_was_not_added_is_refused(files: tuple[Path, Path]) -> None:
    use = TextToImage(tiny_bundle()).add_lora(files[0])
    with pytest.raises(InputError, match=rf"the LoRA ink \({use.fingerprint}\) is not loaded"):
        TextToImage(tiny_bundle()).generate([replace(REQUEST, loras=(use,))])


def test_a_lora_for_another_family_is_named(tmp_path: Path) -> None:
    to_k = TO_Q.replace("attn1.to_q", "attn2.to_k")
    for width, base in ((768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "SDXL")):
        tensors = {
            f"{kohya_name(to_k)}.lora_down.weight": torch.zeros(2, width),
            f"{kohya_name(to_k)}.lora_up.weight": torch.zeros(16, 2),
        }
        save_file(tensors, tmp_path / "lora.safetensors")
        with pytest.raises(ModelLoadError, match="made for another base model") as error:
            TextToImage(tiny_bundle()).add_lora(tmp_path / "lora.safetensors")
        assert error.value.hint == f"it seems to be made for {base}"


def test_a_part_that_is_missing_is_reported(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    known = lora(bundle, 1, part=TO_Q).modules
    absent = FC1.replace("layers.0", "layers.7")
    write_lora(tmp_path / "x.safetensors", LoRAWeights({**known, absent: known[TO_Q]}, "kohya"), "kohya")
    adapters = Adapters(bundle)
    report = adapters.report(adapters.add(tmp_path / "x.safetensors"))
    assert str(report) == f"1/2 modules applied; not in this model: {absent}"


# Another VAE


def test_another_vae_decodes_the_same_latents(tmp_path: Path) -> None:
    other = tiny_bundle()
    other.vae = tiny_vae(seed=9)
    save_vae(other.vae, tmp_path / "vae")
    model = TextToImage(tiny_bundle())
    (before,) = model.generate([REQUEST])
    model.use_vae(tmp_path / "vae")
    (after,), (expected,) = model.generate([REQUEST]), TextToImage(other).generate([REQUEST])
    assert pixels_sha256(after.pixels) == pixels_sha256(expected.pixels) != pixels_sha256(before.pixels)


def test_its_own_scale_is_used(tmp_path: Path) -> None:
    save_vae(tiny_vae(replace(TINY_VAE, scaling_factor=0.5)), tmp_path / "vae")
    model = TextToImage(tiny_bundle())
    model.use_vae(tmp_path / "vae")
    assert model.latent_space.scale == 0.5


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (replace(TINY_VAE, latent_channels=8), "8 channels at 1/8"),
        (replace(TINY_VAE, block_out_channels=(8, 16, 16)), "4 channels at 1/4"),
    ],
)
def test_a_vae_of_another_form_is_refused(config: VAEConfig, found: str, tmp_path: Path) -> None:
    save_vae(tiny_vae(config), tmp_path / "vae")
    with pytest.raises(ModelLoadError, match=rf"its latents have {found} of the size, the model's 4 channels at 1/8"):
        TextToImage(tiny_bundle()).use_vae(tmp_path / "vae")


def test_a_vae_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no VAE") as error:
        TextToImage(tiny_bundle()).use_vae(tmp_path / "vae")
    assert isinstance(error.value, LatentgenError)
