"""The perceptual distances against their formulas, on the features of torchvision's VGG16 and transformers' CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentgen.checkpoints.clip_folder import CLIP_MEAN, CLIP_STD, save_towers
from latentgen.errors import InputError, ModelLoadError, ModelNotFoundError
from latentgen.training.clip import build_towers
from latentgen.training.perceptual import LPIPS, CLIPDistance, load_perceptual, perceptual_identity
from latentgen.training.perceptual_files import LPIPS_FILE, VGG16_FILE, choose_perceptual
from tests.oracle.test_clip_folder import IMAGE, TEXT


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two published files, with random numbers in them: same names, same shapes."""
    from torchvision.models import vgg16

    folder = tmp_path_factory.mktemp("lpips")
    with torch.device("meta"):
        features = vgg16(weights=None, init_weights=False).features.state_dict()
    generator = torch.Generator().manual_seed(1)
    weights: dict[str, Tensor] = {"classifier.6.bias": torch.zeros(3)}
    for name, value in features.items():
        size = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.1
        weights[f"features.{name}"] = torch.empty(value.shape).normal_(0, size, generator=generator)
    torch.save(weights, folder / VGG16_FILE)
    heads = {
        f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for k, width in enumerate((64, 128, 256, 512, 512))
    }
    torch.save(heads, folder / LPIPS_FILE)
    return folder


def unit(features: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return features / np.linalg.norm(features, axis=axis, keepdims=True).clip(1e-10)


def test_lpips_is_its_equation(lpips_folder: Path) -> None:
    """arXiv:1801.03924, eq. 1, in float64 on features that torchvision computes. 1e-4: ours are in float32."""
    from torchvision.models import vgg16

    network = vgg16(weights=None, init_weights=False).features.double()
    weights = torch.load(lpips_folder / VGG16_FILE, weights_only=True)
    network.load_state_dict({n.removeprefix("features."): v for n, v in weights.items() if n.startswith("features.")})
    heads = torch.load(lpips_folder / LPIPS_FILE, weights_only=True)
    a, b = torch.rand(2, 2, 3, 32, 48) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    # ImageNet's normalisation; LPIPS rounds it to three digits after going to [-1, 1].
    def relus(pixels: Tensor) -> list[NDArray[np.float64]]:
        x = (((pixels + 1) / 2 - mean[:, None, None]) / std[:, None, None]).double()
        found: list[NDArray[np.float64]] = []
        for layer, following in zip(network, [*list(network)[1:], None], strict=True):
            x = layer(x)
            if isinstance(layer, nn.ReLU) and isinstance(following, nn.MaxPool2d):
                found.append(x.detach().numpy().copy())
        return found

    distances = np.zeros(2)
    for k, (y, y0) in enumerate(zip(relus(a), relus(b), strict=True)):
        w = np.sqrt(heads[f"lin{k}.model.1.weight"].double().numpy().reshape(1, -1, 1, 1))
        squared = np.square(w * (unit(y, 1) - unit(y0, 1))).sum(axis=1)
        distances += squared.mean(axis=(1, 2))
    ours = LPIPS.load(lpips_folder / VGG16_FILE, lpips_folder / LPIPS_FILE)
    assert float(ours(a, b)) == pytest.approx(distances.mean(), rel=1e-4)
    assert float(ours(a, a)) == 0
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_black_pictures_have_finite_gradients(lpips_folder: Path) -> None:
    """Where every feature is 0 a length has no derivative."""
    ours = LPIPS.load(lpips_folder / VGG16_FILE, lpips_folder / LPIPS_FILE)
    with torch.no_grad():
        for module in ours.features:
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                module.bias.fill_(-100)
    picture = torch.full((1, 3, 16, 16), -1.0, requires_grad=True)
    ours(picture, torch.ones(1, 3, 16, 16)).backward()
    assert picture.grad is not None
    assert bool(torch.isfinite(picture.grad).all())


def test_clip_distance_is_lpips_on_patch_tokens(tmp_path: Path) -> None:
    """On the hidden states that transformers computes from the folder we write; resized as it is stated."""
    from transformers import CLIPModel

    towers = build_towers(TEXT, IMAGE)
    save_towers(towers.state_dict(), TEXT, IMAGE, tmp_path / "clip")
    theirs = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    a, b = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))

    def states(pixels: Tensor) -> list[NDArray[np.float64]]:
        with torch.inference_mode():
            output = theirs.vision_model(((pixels + 1) / 2 - mean) / std, output_hidden_states=True)
        return [state[:, 1:].double().numpy() for state in output.hidden_states[1:]]

    layers = [
        np.square(unit(y, 2) - unit(y0, 2)).sum(axis=2).mean() for y, y0 in zip(states(a), states(b), strict=True)
    ]
    assert len(layers) == IMAGE.layers
    ours = CLIPDistance.load(tmp_path)
    assert float(ours(a, b)) == pytest.approx(float(np.mean(layers)), rel=1e-4)
    # A plain colour stays what it is when it is resized to the tower's side.
    red, grey = torch.tensor([0.8, -0.9, -0.9])[:, None, None], torch.zeros(3, 1, 1)
    small, large = (float(ours(red.expand(1, 3, h, w), grey.expand(1, 3, h, w))) for h, w in ((16, 16), (40, 24)))
    assert large == pytest.approx(small, rel=1e-4)
    assert small > 0
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_what_auto_comes_to(lpips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    nothing = choose_perceptual("auto", None)
    assert (nothing.kind, nothing.files) == ("none", ())
    assert "no LPIPS weights in" in nothing.explanation
    assert load_perceptual(nothing) is None
    assert perceptual_identity(nothing) == "none"
    with pytest.raises(InputError, match="--perceptual lpips: its weights are not in"):
        choose_perceptual("lpips", None)
    with pytest.raises(InputError, match="--perceptual clip: there is no --perceptual-model"):
        choose_perceptual("clip", None)
    with pytest.raises(InputError, match="uses no --perceptual-model"):
        choose_perceptual("none", lpips_folder)
    with pytest.raises(ModelNotFoundError, match="no folder at --perceptual-model"):
        choose_perceptual("auto", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds neither a CLIP model nor LPIPS weights"):
        choose_perceptual("auto", tmp_path / "empty")

    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    for name in (VGG16_FILE, LPIPS_FILE):
        (cache / name).symlink_to(lpips_folder / name)
    assert str(cache) == str(Path(torch.hub.get_dir()) / "checkpoints")
    found = choose_perceptual("auto", None)
    assert (found.kind, found.files) == ("lpips", (cache / VGG16_FILE, cache / LPIPS_FILE))
    assert perceptual_identity(found) == perceptual_identity(choose_perceptual("lpips", lpips_folder))

    save_towers(build_towers(TEXT, IMAGE).state_dict(), TEXT, IMAGE, tmp_path / "model" / "clip")
    clip = choose_perceptual("auto", tmp_path / "model")
    assert (clip.kind, clip.files) == ("clip", (tmp_path / "model" / "clip",))
    assert isinstance(load_perceptual(clip), CLIPDistance)
    assert perceptual_identity(clip).startswith("clip-")


@pytest.mark.parametrize("name", [VGG16_FILE, LPIPS_FILE])
def test_files_that_are_not_the_weights(name: str, lpips_folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(tmp_path / "sprung"), "w"))

    files = {each: lpips_folder / each for each in (VGG16_FILE, LPIPS_FILE)}
    files[name] = tmp_path / name
    for content, says in (
        (b"", "damaged"),
        (b"<html>", "damaged"),
        (Trap(), "damaged"),
        ({"a": 1}, "something else than tensors"),
        ({"a": torch.zeros(1)}, "does not fit"),
        ([torch.zeros(1)], "something else than tensors"),
    ):
        if isinstance(content, bytes):
            files[name].write_bytes(content)
        else:
            torch.save(content, files[name])
        with pytest.raises(ModelLoadError, match=says) as error:
            LPIPS.load(files[VGG16_FILE], files[LPIPS_FILE])
        assert "weights_only" not in str(error.value)
    assert not (tmp_path / "sprung").exists()
