"""Training a LoRA: it learns, the base stays as it was, a resumed run is exact, two processes are one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from latentgen.checkpoints.lora_names import is_target
from latentgen.config import DiffusionConfig
from latentgen.diffusion.latents import LatentSpace
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.lora import AdapterSize, LoRANetwork, layers_of
from latentgen.models.unet import UNet
from latentgen.training.caches import ContextCache, LatentCache, weights_fingerprint
from latentgen.training.lora import LoRAObjective, TokenIds
from latentgen.training.rng import Draw
from latentgen.training.unet import UNetObjective, UNetObjectiveConfig
from tests.tiny import randomize, tiny_vae
from tests.training.ranks import torchrun
from tests.training.tiny_runs import TEXT, UNET, VAE, TinyData, gradient_difference, state_hashes, train

LAST = 4


def frozen_parts() -> tuple[UNet, CLIPTextModel]:
    unet, text_encoder = UNet(UNET), CLIPTextModel(TEXT)
    randomize(unet, 1)
    randomize(text_encoder, 2)
    return unet.eval(), text_encoder.eval()


def lora_objective(data: TinyData, *, text: bool, seed: int = 0) -> LoRAObjective:
    """The same seed builds the same adapters."""
    unet, text_encoder = frozen_parts()
    latents = LatentCache(data.records, data.pixels, tiny_vae(VAE), data.cache, lambda note: None)
    contexts = (
        TokenIds(data.records, data.tokenizer)
        if text
        else ContextCache(data.records, data.tokenizer, text_encoder, data.cache, lambda note: None)
    )
    torch.manual_seed(seed)
    layers = layers_of(unet, text_encoder if text else None)
    sizes = {name: AdapterSize(2, 2.0) for name in layers if is_target(name, "all")}
    network = LoRANetwork(unet, text_encoder if text else None, sizes)
    denoising = UNetObjective(
        unet,
        DiffusionConfig(),
        LatentSpace.from_config(VAE),
        data.records,
        latents,
        contexts,
        UNetObjectiveConfig(),
        None,
        {"base_unet": weights_fingerprint(unet)},
    )
    return LoRAObjective(network, denoising)


TEXT_OR_NOT = pytest.mark.parametrize("text", [False, True], ids=["unet", "unet and text"])


@TEXT_OR_NOT
def test_it_learns_one_batch_and_the_base_stays(text: bool, tiny_data: TinyData) -> None:
    objective = lora_objective(tiny_data, text=text)
    network = objective.network
    frozen = {name: layer.weight.clone() for name, layer in layers_of(network.unet, None).items()}
    batch = objective.batch([Draw(0, i, i) for i in range(4)])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(40):
        loss, _ = objective.loss(network, batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] * 2 < losses[0], f"{losses[0]:.4f} -> {losses[-1]:.4f}"
    for name, layer in layers_of(network.unet, None).items():
        assert torch.equal(layer.weight, frozen[name]), name
    changed = {name.split(".")[0] for name, update in network.updates().items() if bool(update.up.any())}
    assert changed == ({"unet", "text_encoder"} if text else {"unet"})


def test_token_ids_are_the_contexts_before_the_text_encoder(tiny_data: TinyData) -> None:
    """Both ways of training see the same context, to the cache's float16."""
    apart, together = (lora_objective(tiny_data, text=text) for text in (False, True))
    draws = [Draw(0, i, i % 10) for i in range(40)]
    _, text_encoder = frozen_parts()
    ids = together.batch(draws).context
    assert ids.dtype == torch.int64
    with torch.no_grad():
        torch.testing.assert_close(apart.batch(draws).context, text_encoder(ids), rtol=2e-3, atol=2e-3)


def test_the_state_is_the_adapters_alone(tiny_data: TinyData) -> None:
    network = lora_objective(tiny_data, text=True).network
    names = set(network.state_dict())
    assert names == {
        f"adapters.{name.replace('.', '_')}.{side}.weight" for name in network.sizes for side in ("down", "up")
    }
    assert {name for name, _ in network.named_parameters()} == names
    assert all(not parameter.requires_grad for parameter in network.unet.parameters())


@TEXT_OR_NOT
def test_gradient_checkpointing_gives_the_same_gradients(text: bool, tiny_data: TinyData) -> None:
    gradients: list[list[torch.Tensor]] = []
    for checkpointed in (False, True):
        objective = lora_objective(tiny_data, text=text)
        if checkpointed:
            objective.network.unet.enable_gradient_checkpointing()
        randomize(objective.network)
        loss, _ = objective.loss(objective.network, objective.batch([Draw(0, i, i) for i in range(2)]), 0)
        loss.backward()
        gradients.append([p.grad for p in objective.network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(objective.network.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@TEXT_OR_NOT
def test_resumed_equals_uninterrupted(text: bool, tiny_data: TinyData, tmp_path: Path) -> None:
    train(lora_objective(tiny_data, text=text), tmp_path / "whole", max_steps=LAST)
    expected = state_hashes(tmp_path / "whole", LAST)
    for stop in (1, 3):
        folder = tmp_path / f"stopped-{stop}"
        train(lora_objective(tiny_data, text=text), folder, max_steps=stop)
        # The adapters of a resumed run are the checkpoint's, whatever they began as.
        train(lora_objective(tiny_data, text=text, seed=9), folder, max_steps=LAST, resume="latest")
        assert state_hashes(folder, LAST) == expected, f"stopped after step {stop}"
    train(lora_objective(tiny_data, text=text, seed=9), tmp_path / "other", max_steps=LAST)
    assert state_hashes(tmp_path / "other", LAST) != expected, "adapters that began otherwise end otherwise"


def test_bf16(tiny_data: TinyData) -> None:
    """Under autocast the adapters learn in float32, from gradients that are those of float32 but for bf16's 8 bits."""
    gradients: list[torch.Tensor] = []
    for enabled in (False, True):
        objective = lora_objective(tiny_data, text=True)
        randomize(objective.network)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = objective.loss(objective.network, objective.batch([Draw(0, i, i) for i in range(4)]), 0)
        loss.backward()
        found = [parameter.grad for parameter in objective.network.parameters() if parameter.grad is not None]
        assert {gradient.dtype for gradient in found} == {torch.float32}
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    difference = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    assert 0 < difference < 0.2, "measured: 0.09"


# Two processes


def main(folder: Path) -> None:
    """What each of the two processes does."""
    data = TinyData(folder / f"data-{os.environ['RANK']}", 10)
    train(lora_objective(data, text=True), folder / "together", batch_size=2, max_steps=3)
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    torchrun("tests.training.test_lora_objective", str(tmp_path))
    assert json.loads((tmp_path / "together" / "config.json").read_text())["processes"] == 2
    data = TinyData(tmp_path / "data-alone", 10)
    train(lora_objective(data, text=True), tmp_path / "alone", batch_size=4, max_steps=3)
    assert gradient_difference(tmp_path / "together", tmp_path / "alone") < 1e-3, "the same sums in another order"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
