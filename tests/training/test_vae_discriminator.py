"""One optimizer and one backward pass train the autoencoder against its discriminator as two would."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentgen.checkpoints.io import is_finite
from latentgen.data.pixels import PixelCache
from latentgen.errors import ConfigError, InputError
from latentgen.training.caches import weights_fingerprint
from latentgen.training.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from latentgen.training.optimizer import make_optimizer
from latentgen.training.sharding import check_can_shard
from latentgen.training.vae import VAENetwork, VAEObjective, gradient_l1, kl_divergence
from latentgen.training.vae_settings import VAELossWeights
from tests.training.overfitting import draws
from tests.training.ranks import torchrun
from tests.training.tiny_runs import SHORT_RUN, VAE, TinyData, gradient_difference, state_hashes, train

SIDE_PX = 24


def test_it_is_not_sharded() -> None:
    network = VAENetwork(VAE, discriminator=PatchDiscriminator(width=8))
    with pytest.raises(InputError, match="the discriminator of --disc-weight cannot be sharded"):
        check_can_shard(network, SHORT_RUN)
    check_can_shard(VAENetwork(VAE), SHORT_RUN)


def adversarial(data: TinyData, *, start: int, decoder_only: bool = False, weight: float = 0.5) -> VAEObjective:
    torch.manual_seed(0)
    return VAEObjective(
        VAE,
        PixelCache(data.records, SIDE_PX, data.cache, lambda text: None),
        "data",
        crop_px=SIDE_PX,
        side_px=SIDE_PX,
        weights=VAELossWeights(kl=1e-4, adversarial=weight, adversarial_from=start),
        decoder_only=decoder_only,
        discriminator=PatchDiscriminator(width=8),
    )


def discriminator_of(objective: VAEObjective) -> PatchDiscriminator:
    assert objective.network.discriminator is not None
    return objective.network.discriminator


def test_the_published_discriminator_sees_seventy_pixels() -> None:
    """pix2pix, appendix 6.1.2: C64-C128-C256-C512, and one verdict for each 70 x 70 px."""
    discriminator = PatchDiscriminator()
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [module.out_channels for module in convolutions] == [64, 128, 256, 512, 1]
    assert [module.stride[0] for module in convolutions] == [2, 2, 2, 1, 1]
    assert discriminator(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    assert discriminator(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 1, 1), "the smallest crop that is allowed"
    # The reach of one verdict, without the norms, which look at the whole picture.
    reach = 1
    for module in reversed(convolutions):
        reach = (reach - 1) * module.stride[0] + module.kernel_size[0]
    assert reach == 70


def test_hinge() -> None:
    real, generated = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(hinge_loss(real, generated)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    """VQGAN, eq. 7, on losses whose gradients are known."""
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight((3 * layer).sum(), (layer * torch.tensor([0.0, 0.5])).sum(), layer)
    assert float(weight) == pytest.approx(3 * 2**0.5 / 0.5, rel=1e-4)
    assert not weight.requires_grad
    assert float(adaptive_weight((3 * layer).sum(), (0 * layer).sum(), layer)) == 1e4


@pytest.mark.parametrize("decoder_only", [False, True])
def test_one_backward_pass_is_two(decoder_only: bool, tiny_data: TinyData) -> None:
    """Autoencoder and discriminator each get the gradient of their own loss, as with an optimizer for each."""
    objective = adversarial(tiny_data, start=0, decoder_only=decoder_only)
    batch = objective.batch(draws(range(3)))
    loss, _ = objective.loss(objective.network, batch, 0)
    loss.backward()
    vae, discriminator = objective.network.vae, discriminator_of(objective)

    # The same by hand, with a backward pass for each of the two.
    mean, logvar = vae.encode(batch.pixels)
    z = mean + (0.5 * logvar).exp() * batch.eps
    reconstruction = vae.decode(z.contiguous(memory_format=torch.channels_last))
    distance = F.l1_loss(reconstruction, batch.pixels) + gradient_l1(reconstruction, batch.pixels)
    kl = kl_divergence(mean, logvar).sum() / (3 * SIDE_PX**2)
    fooling = -discriminator(reconstruction).mean()
    last = vae.decoder.conv_out.weight
    norms = [torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (distance, fooling)]
    adaptive = (norms[0] / (norms[1] + 1e-6)).detach()
    of_autoencoder = distance + 1e-4 * kl + F.relu(logvar).mean() + 0.5 * adaptive * fooling
    of_discriminator = hinge_loss(discriminator(batch.pixels), discriminator(reconstruction.detach()))
    for module, own in ((vae, of_autoencoder), (discriminator, of_discriminator)):
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        expected = torch.autograd.grad(own, parameters, retain_graph=True)
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
        assert any(bool(gradient.any()) for gradient in expected)
    torch.testing.assert_close(loss, of_autoencoder + of_discriminator)


def test_until_it_takes_part_it_stays_as_it_is(tiny_data: TinyData) -> None:
    """Bit for bit, under AdamW with decay and under Muon; and the autoencoder learns as if there were none."""
    for muon_lr in (None, 0.02):
        objective = adversarial(tiny_data, start=2)
        plain = VAEObjective(
            VAE, objective.pixels, "data", crop_px=SIDE_PX, side_px=SIDE_PX, weights=VAELossWeights(kl=1e-4)
        )
        plain.network.vae.load_state_dict(objective.network.vae.state_dict())
        networks = (objective.network, plain.network)
        optimizers = [
            make_optimizer(network, lr=1e-2, muon_lr=muon_lr, weight_decay=0.1, beta2=0.99) for network in networks
        ]
        before = weights_fingerprint(discriminator_of(objective))
        for step in range(3):
            for each, network, optimizer in zip((objective, plain), networks, optimizers, strict=True):
                loss, _ = each.loss(network, each.batch(draws(range(2))), step)
                optimizer.zero_grad()
                loss.backward()
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"]
                optimizer.step()
            if step == 1:
                assert weights_fingerprint(discriminator_of(objective)) == before
                assert weights_fingerprint(objective.network.vae) == weights_fingerprint(plain.network.vae)
        assert weights_fingerprint(discriminator_of(objective)) != before
        assert weights_fingerprint(objective.network.vae) != weights_fingerprint(plain.network.vae)


def test_discriminator_learns_to_tell(tiny_data: TinyData) -> None:
    """On a fixed autoencoder its loss falls from 1, that of a coin, to all but 0."""
    objective = adversarial(tiny_data, start=0)
    batch = objective.batch(draws(range(4)))
    optimizer = torch.optim.Adam(discriminator_of(objective).parameters(), lr=1e-3)
    losses: list[float] = []
    for _ in range(40):
        loss, metrics = objective.loss(objective.network, batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(metrics["discriminator"]))
    assert losses[0] == pytest.approx(1, abs=0.2)
    assert losses[-1] < 0.1


def test_resumed_equals_uninterrupted(tiny_data: TinyData, tmp_path: Path) -> None:
    """Across the step in which the discriminator comes in, with accumulation, its EMA and its optimizer's state."""
    short = {"max_steps": 4, "muon_lr": 0.02, "grad_accum": 2, "batch_size": 2}
    train(adversarial(tiny_data, start=2), tmp_path / "whole", **short)
    expected = state_hashes(tmp_path / "whole", 4)
    for stop in (1, 2, 3):
        folder = tmp_path / f"stopped-{stop}"
        train(adversarial(tiny_data, start=2), folder, **{**short, "max_steps": stop})
        train(adversarial(tiny_data, start=2), folder, resume="latest", **short)
        assert state_hashes(folder, 4) == expected, f"stopped after step {stop}"


def test_a_crop_without_a_patch(tiny_data: TinyData) -> None:
    with pytest.raises(ConfigError, match="--crop 16 holds no patch for the discriminator: it takes at least 24 px"):
        VAEObjective(
            VAE,
            tiny_data.pixels,
            "data",
            crop_px=16,
            side_px=16,
            weights=VAELossWeights(adversarial=1.0),
            discriminator=PatchDiscriminator(width=8),
        )


def main(folder: Path) -> None:
    """What each of two processes does."""
    data = TinyData(folder / f"data-{os.environ['RANK']}", 10)
    hashes: dict[str, str] = {}
    for name, start, decoder_only in (("never", 100, False), ("late", 1, False), ("decoder", 0, True)):
        objective = adversarial(data, start=start, decoder_only=decoder_only)
        train(objective, folder / name, batch_size=1, grad_accum=2, max_steps=3)
        assert all(is_finite(value) for value in objective.network.state_dict().values())
        hashes[name] = weights_fingerprint(objective.network)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(hashes))
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_processes(tiny_data: TinyData, tmp_path: Path) -> None:
    """With the discriminator not reached, reached on the way, and in decoder-only mode from the first step."""
    torchrun("tests.training.test_vae_discriminator", str(tmp_path))
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second, "both processes hold the same weights"
    assert len(set(first.values())) == 3
    # Until it takes part, two processes are one with twice the batch.
    train(adversarial(tiny_data, start=100), tmp_path / "alone", batch_size=2, grad_accum=2, max_steps=3)
    assert gradient_difference(tmp_path / "never", tmp_path / "alone") < 1e-3


if __name__ == "__main__":
    main(Path(sys.argv[1]))
