"""One network in memory at a time: the same pictures, and the others really are gone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latentgen import TextToImage
from latentgen.checkpoints.folder import load_model
from latentgen.checkpoints.lora import LoRAWeights, write_lora
from latentgen.checkpoints.lora_names import is_target
from latentgen.errors import InputError, ModelLoadError
from latentgen.models.lora import LowRankUpdate, layers_of
from latentgen.pipeline import low_memory
from latentgen.pipeline.low_memory import LOADERS, OnDemandBundle, Part
from latentgen.pipeline.network import Network
from latentgen.request import GenerationRequest, Hires, complete_request
from tests.tiny_bundle import save_tiny_model, tiny_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts that are read, in order; at each reading every network read before must be gone."""
    order: list[Part] = []
    alive: list[weakref.ref[nn.Module]] = []

    def following(part: Part, load: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def loading(*args: object, **kwargs: object) -> nn.Module:
            gc.collect()
            assert [each() for each in alive if each() is not None] == [], f"a network is held while {part} is read"
            network = load(*args, **kwargs)
            order.append(part)
            alive.append(weakref.ref(network))
            return network

        return loading

    monkeypatch.setattr(low_memory, "LOADERS", {part: following(part, load) for part, load in LOADERS.items()})
    return order


def request(model: TextToImage, **given: object) -> GenerationRequest:
    base = complete_request(model.bundle.config, prompt="a red boat", seed=5, steps=3, width_px=32, height_px=32)
    return replace(base, **given)  # pyright: ignore[reportArgumentType]


def pixels(model: TextToImage, **given: object) -> np.ndarray:
    return next(model.generate([request(model, **given)])).pixels


def write_tiny_lora(path: Path) -> Path:
    """A LoRA of every linear layer of the U-Net and the text encoder."""
    bundle = tiny_bundle()
    updates = {
        name: LowRankUpdate(torch.randn(2, layer.in_features) * 0.1, torch.randn(layer.out_features, 2), alpha=1.0)
        for name, layer in layers_of(bundle.unet, bundle.text_encoder).items()
        if isinstance(layer, nn.Linear) and is_target(name, "attention+ff")
    }
    assert {name.partition(".")[0] for name in updates} == {"unet", "text_encoder"}
    write_lora(path, LoRAWeights(updates, "kohya"), "kohya")
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", [{"guidance": 1.0}, {"guidance": 6.0}, {"hires": Hires(scale=1.5)}])
def test_the_picture_is_the_same_to_the_bit(
    folder: Path, read: list[Part], dtype: str, given: dict[str, object]
) -> None:
    whole = TextToImage.load(folder, device="cpu", dtype=dtype)
    little = TextToImage.load(folder, device="cpu", dtype=dtype, low_memory=True)
    assert np.array_equal(pixels(whole, **given), pixels(little, **given))


def test_passes_one_after_the_other_predict_the_same() -> None:
    unet = tiny_bundle().unet
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 77, unet.config.cross_attention_dim)
    t = torch.tensor([500, 500])
    with torch.inference_mode():
        together, singly = (Network(unet, one_by_one=one_by_one)(x, t, context) for one_by_one in (False, True))
    torch.testing.assert_close(singly, together, atol=1e-5, rtol=1e-4)  # float32 sums in another order
    assert together.std() > 0


def test_parts_are_read_when_needed_and_gone_afterwards(folder: Path, read: list[Part]) -> None:
    model = TextToImage.load(folder, device="cpu", low_memory=True)
    assert read == ["text_encoder", "vae", "unet"]
    read.clear()
    first = pixels(model, guidance=6.0)
    assert read == ["text_encoder", "unet", "vae"]
    read.clear()
    assert np.array_equal(pixels(model, guidance=6.0), first)
    assert read == ["unet", "vae"]  # the prompts are encoded already


def test_loras_are_in_whatever_is_read(folder: Path, read: list[Part], tmp_path: Path) -> None:
    whole = TextToImage.load(folder, device="cpu", dtype="float32")
    little = TextToImage.load(folder, device="cpu", dtype="float32", low_memory=True)
    file = write_tiny_lora(tmp_path / "style.safetensors")
    with_lora = (whole.add_lora(file), little.add_lora(file))
    plain = pixels(little, guidance=1.0)
    assert np.array_equal(
        pixels(whole, guidance=1.0, loras=with_lora[:1]), pixels(little, guidance=1.0, loras=with_lora[1:])
    )
    assert not np.array_equal(pixels(little, guidance=1.0, loras=with_lora[1:]), plain)
    assert np.array_equal(pixels(little, guidance=1.0), plain)


def test_loras_for_good_are_read_in_like_the_others(folder: Path, read: list[Part], tmp_path: Path) -> None:
    whole = TextToImage.load(folder, device="cpu", dtype="float32")
    little = TextToImage.load(folder, device="cpu", dtype="float32", low_memory=True)
    file = write_tiny_lora(tmp_path / "style.safetensors")
    read.clear()
    for model in (whole, little):
        model.adapters.use_for_good((model.add_lora(file),))
    assert read == [], "no part is read to be merged and let go"
    uses = [(model.add_lora(file),) for model in (whole, little)]
    assert np.array_equal(pixels(whole, guidance=1.0, loras=uses[0]), pixels(little, guidance=1.0, loras=uses[1]))
    with pytest.raises(InputError, match="merged for good"):
        pixels(little, guidance=1.0)


def test_a_vae_from_elsewhere_stays(folder: Path, read: list[Part]) -> None:
    whole = TextToImage.load(folder, device="cpu", dtype="float32")
    little = TextToImage.load(folder, device="cpu", dtype="float32", low_memory=True)
    little.use_vae(folder)
    read.clear()
    assert np.array_equal(pixels(little, guidance=1.0), pixels(whole, guidance=1.0))
    assert "vae" not in read


def test_what_is_told_of_the_model_is_the_same(folder: Path) -> None:
    whole, little = load_model(folder), OnDemandBundle(folder)
    assert (little.name, little.config, little.fingerprint()) == (whole.name, whole.config, whole.fingerprint())
    assert (little.device, little.dtype) == (torch.device("cpu"), torch.float32)
    layers = {name: tensor.shape for name, tensor in little.outline().unet.state_dict().items()}
    assert layers == {name: tensor.shape for name, tensor in whole.unet.state_dict().items()}


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damage_is_found_before_anything_is_drawn(part: str, tmp_path: Path) -> None:
    broken = save_tiny_model(tmp_path / "tiny")
    (weights,) = (broken / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelLoadError):
        OnDemandBundle(broken)
