"""A model whose U-Net's dead attention heads begin anew, and that draws what it drew.

    python scripts/revive_attention.py weights/embedded runs/revived

A head dies when its logits grow until every query looks at one and the same key, for every picture and prompt: the
softmax has no gradient left, and all that the head gives is a constant. Of the embedded model's ten cross-attentions
five had died so by v9, among them those of the two coarser levels on the way down, which never read the prompt. Here
the constant goes into the bias of the layer's output, and the head gets fresh queries, keys and values, and an output
of zero from which `train-unet --init` lets it grow (`--attention-cap` keeps it alive). What is drawn does not change,
but for the little by which the head was no constant; how much that is, is printed. The U-Net is written in float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from latentgen.checkpoints.folder import copied_without, load_text_encoder, load_tokenizer, load_unet, save_unet
from latentgen.checkpoints.layout import read_diffusion
from latentgen.corpus.records import VocabularyName, make_record
from latentgen.diffusion.guidance import GuidedDenoiser
from latentgen.diffusion.noise import starting_point
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.errors import InputError, LatentgenError
from latentgen.models.attention import Attention
from latentgen.models.unet import UNet
from latentgen.pipeline.conditioning import encode_prompts
from latentgen.samplers.registry import get_sampler

CAPTIONS, STEPS, GUIDANCE = 16, 12, 3.5
"""What is drawn while the heads are watched."""
CONSTANT = 1e-3
"""Share of a dead head's output, of its mean square, that varies over queries, prompts and steps."""


@dataclass
class Moments:
    """Of what one layer's heads give, over all tokens so far."""

    tokens: int
    total: Tensor
    """(C,)"""
    squares: Tensor
    """(C,)"""


def moments_of(unet: UNet, call: Callable[[], Tensor]) -> tuple[dict[str, Moments], Tensor]:
    """Of the input of every attention's output layer, (B, N, C), while the U-Net is called; and what `call` gives."""
    found: dict[str, Moments] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().double().flatten(0, 1)
            seen = found.setdefault(name, Moments(0, *torch.zeros(2, values.shape[1], dtype=torch.float64)))
            seen.tokens += len(values)
            seen.total += values.sum(dim=0)
            seen.squares += values.square().sum(dim=0)

        return see

    handles = [
        module.to_out[0].register_forward_pre_hook(watch(name))
        for name, module in unet.named_modules()
        if isinstance(module, Attention)
    ]
    answer = call()
    for handle in handles:
        handle.remove()
    return found, answer


@torch.no_grad()
def revive(layer: Attention, moments: Moments) -> list[int]:
    """Begin the dead heads of a layer anew, in place, its output's mean kept; which they were."""
    mean = moments.total / moments.tokens
    varying = (moments.squares / moments.tokens - mean.square()).unflatten(0, (layer.heads, -1)).sum(dim=1)
    whole = (moments.squares / moments.tokens).unflatten(0, (layer.heads, -1)).sum(dim=1)
    dead = [head for head in range(layer.heads) if varying[head] < CONSTANT * whole[head]]
    out = layer.to_out[0]
    assert isinstance(out, nn.Linear), "an attention's output is a linear layer"
    width = out.in_features // layer.heads
    for head in dead:
        rows = slice(head * width, (head + 1) * width)
        out.bias += (out.weight[:, rows].double() @ mean[rows]).to(out.bias.dtype)
        out.weight[:, rows] = 0
        for projection in (layer.to_q, layer.to_k, layer.to_v):
            fresh = nn.Linear(projection.in_features, width, bias=False)
            projection.weight[rows] = fresh.weight
    return dead


def draw(unet: UNet, model: Path, vocabulary: VocabularyName) -> Tensor:
    """The latents (B, C, h, w) of pictures of captions of scenes; the same arguments always draw the same."""
    encoder, tokenizer = load_text_encoder(model).eval(), load_tokenizer(model)
    captions = [make_record(vocabulary, seed, 1).captions[0] for seed in range(80_000_000, 80_000_000 + CAPTIONS)]
    diffusion = read_diffusion(model)
    schedule = NoiseSchedule.from_config(diffusion)
    sigmas = schedule.inference_sigmas(STEPS, diffusion.usual_schedule)
    side = unet.config.sample_size
    noise = torch.randn(CAPTIONS, unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        uncond, cond = encode_prompts(["", *captions], tokenizer, encoder).split([1, CAPTIONS])
        denoise = GuidedDenoiser(unet, schedule, diffusion.prediction_type, cond, uncond, GUIDANCE)
        return get_sampler("ddim")(denoise, starting_point(noise, float(sigmas[0])), sigmas, noise=lambda: noise)


def run(model: Path, out: Path, vocabulary: VocabularyName) -> None:
    """Write the model with its U-Net's dead heads begun anew.

    Raises LatentgenError for what cannot be read, InputError for an out that is there already and for a U-Net that
    takes a picture beside its latents.
    """
    if out.exists():
        raise InputError(f"{out} is there already", hint="name a new folder")
    unet = load_unet(model).float().eval()
    if unet.config.in_channels != unet.config.out_channels:
        raise InputError(f"{model}: its U-Net takes a picture beside its latents, as those for inpainting do")
    torch.manual_seed(0)
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}
    of_layers, before = moments_of(unet, lambda: draw(unet, model, vocabulary))
    for name, moments in of_layers.items():
        if dead := revive(layers[name], moments):
            print(f"{name}: {len(dead)} of {layers[name].heads} heads begin anew")
    change = (draw(unet, model, vocabulary) - before).square().mean().sqrt() / before.std()
    print(f"the same {CAPTIONS} pictures differ by {change:.1e} of their latents' spread")
    with copied_without(model, out, "unet") as aside:
        save_unet(unet, aside / "unet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocabulary", choices=("heroes", "heroes20"), default="heroes")
    options = parser.parse_args()
    try:
        run(options.model, options.out, options.vocabulary)
    except (LatentgenError, OSError) as error:
        sys.exit(f"revive_attention.py: {error}")


if __name__ == "__main__":
    main()
