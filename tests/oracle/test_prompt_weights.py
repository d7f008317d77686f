"""Contexts of weighted and chunked prompts, against transformers' CLIPTextModel and a computation by A1111's rules.

What is compared: A1111's `sd_hijack_clip.py` and `sd_emphasis.py` ("Original") in words of numpy, on the states that
transformers' own tokenizer and text model give. Tolerance: float64 in both, so only the order of sums differs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from transformers import CLIPTokenizer

from latentgen.checkpoints.folder import ModelBundle, save_model
from latentgen.models.tokenizer import Tokenizer
from latentgen.pipeline.conditioning import Conditioner
from latentgen.request import GenerationRequest, complete_request
from tests.oracle.test_folder import NETWORK
from tests.tiny import TINY_MODEL, TINY_TEXT, tiny_text_encoder, tiny_unet, tiny_vae
from tests.tiny_bundle import MERGES

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
Weighted = list[tuple[str, float]]

CONFIG = replace(TINY_MODEL, text_encoder=replace(TINY_TEXT, num_hidden_layers=4))


def bundle(pad: str = "<|endoftext|>", **changes: Any) -> ModelBundle:
    config = replace(CONFIG, **changes)
    return ModelBundle(
        unet=tiny_unet(),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(config.text_encoder).double(),
        tokenizer=Tokenizer.published(MERGES, pad=pad),
        config=config,
    )


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"], ids=["sd1", "sd2"])
def model(request: pytest.FixtureRequest) -> ModelBundle:
    return bundle(request.param)


class Reference:
    """A1111's rules on transformers' parts."""

    def __init__(self, model: ModelBundle, folder: Path) -> None:
        from tests.oracle.test_clip_text import build_pair

        model.tokenizer.save(folder)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        _, self.encoder = build_pair(model.config.text_encoder)
        with torch.no_grad():
            weights = dict(model.text_encoder.named_parameters())
            for name, parameter in self.encoder.named_parameters():
                parameter.copy_(weights[f"text_model.{name.removeprefix('text_model.')}"])

    @torch.no_grad()
    def chunk(self, parts: Weighted) -> NDArray[np.float64]:
        """The context (77, D) of one chunk, of texts and their weights."""
        ids, weights = [self.tokenizer.bos_token_id], [1.0]
        for text, weight in parts:
            found = self.tokenizer(text, add_special_tokens=False).input_ids
            ids += found
            weights += [weight] * len(found)
        assert len(ids) <= 76
        ids += [self.tokenizer.eos_token_id] + [self.tokenizer.pad_token_id] * (76 - len(ids))
        z = self.encoder(torch.tensor([ids])).last_hidden_state[0].numpy()
        weighted = z * np.array(weights + [1.0] * (77 - len(weights)))[:, None]
        return weighted * (z.mean() / weighted.mean())


def request(prompt: str, negative: str = "", **changes: Any) -> GenerationRequest:
    return complete_request(CONFIG, prompt=prompt, negative_prompt=negative, seed=1, **changes)


COLOURS = "red, green, blue, black, white, grey, "

CASES: dict[str, tuple[str, list[Weighted]]] = {
    "plain": ("a red cat, 1984", [[("a red cat, 1984", 1.0)]]),
    "empty": (" ", [[]]),
    "emphasis": (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            [
                ("a ", 1.0),
                ("house", 1.3 * 1.1 * 1.1),
                (" ", 1.1),
                ("on", 1.1 / 1.1),
                (" a ", 1.1),
                ("hill", 0.5 * 1.1),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ]
        ],
    ),
    "negative weights": ("(cat:-0.5) (dog:0)", [[("cat", -0.5), (" ", 1.0), ("dog", 0.0)]]),
    "break": ("a (red:1.4) BREAK cat", [[("a ", 1.0), ("red", 1.4)], [("cat", 1.0)]]),
    "76 letters": ("a " * 76, [[("a " * 75, 1.0)], [("a", 1.0)]]),
    "back to the comma": (
        "a " * 60 + ", (b:1.2) " + "c " * 20,
        [[("a " * 60 + ",", 1.0)], [("b", 1.2), ("c " * 20, 1.0)]],
    ),
}


@pytest.mark.parametrize(("prompt", "chunks"), CASES.values(), ids=CASES.keys())
def test_contexts_by_a1111s_rules(prompt: str, chunks: list[Weighted], model: ModelBundle, tmp_path: Path) -> None:
    reference = Reference(model, tmp_path)
    wanted = np.concatenate([reference.chunk(chunk) for chunk in chunks])
    asked = replace(request("x", prompt), guidance=2.0)  # as the negative prompt, which may be empty
    found = Conditioner(model).encode([asked]).uncond
    assert found is not None
    assert found.shape[1] == 77 * len(chunks)
    torch.testing.assert_close(found[0], torch.from_numpy(wanted), **TOLERANCE)


def test_emphasis_restores_the_mean_and_changes_the_context(model: ModelBundle) -> None:
    conditioner = Conditioner(model)
    plain = conditioner.encode([request("a red cat", guidance=1.0)]).cond
    loud = conditioner.encode([request("a (red:1.5) cat", guidance=1.0)]).cond
    torch.testing.assert_close(plain.mean(), loud.mean(), **TOLERANCE)
    assert (plain - loud)[0, 2].abs().max() > 0.1


@pytest.mark.parametrize("guided", ["prompt", "negative prompt"])
def test_the_shorter_prompt_is_filled_up_with_empty_chunks(guided: str, model: ModelBundle, tmp_path: Path) -> None:
    reference = Reference(model, tmp_path)
    long, short = "a " * 150 + "b", "a cat"
    texts = (long, short) if guided == "prompt" else (short, long)
    conditioning = Conditioner(model).encode([request(*texts)])
    assert conditioning.uncond is not None
    filled = conditioning.uncond if guided == "prompt" else conditioning.cond
    wanted = np.concatenate([reference.chunk([(short, 1.0)]), reference.chunk([]), reference.chunk([])])
    torch.testing.assert_close(filled[0], torch.from_numpy(wanted), **TOLERANCE)
    assert conditioning.cond.shape == conditioning.uncond.shape


def test_a_plain_prompt_is_the_text_encoders_own_context_to_the_bit() -> None:
    model = bundle()
    model.text_encoder.float()
    with torch.no_grad():
        wanted = model.text_encoder(model.tokenizer.encode(["a red cat, sitting"]))
    found = Conditioner(model).encode([request("a red cat, sitting", guidance=1.0)]).cond
    assert torch.equal(found, wanted)


# Clip skip


def encoded_by_diffusers(folder: Path, prompt: str, clip_skip: int | None) -> torch.Tensor:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    if not hasattr(pipeline.text_encoder, "text_model"):  # transformers 5 has put its parts into the model itself
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    context, _ = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False, clip_skip=clip_skip)
    return context


@pytest.mark.parametrize("clip_skip", [None, 1, 2, 3])
def test_clip_skip_as_in_diffusers(clip_skip: int | None, tmp_path: Path) -> None:
    """diffusers counts the layers that are left out: its 1 is A1111's 2, its None A1111's 1."""
    model = bundle()
    model.text_encoder.float()
    save_model(model, tmp_path)
    theirs = encoded_by_diffusers(tmp_path, "a red cat", None if clip_skip in (None, 1) else clip_skip - 1)
    found = Conditioner(model).encode([request("a red cat", clip_skip=clip_skip, guidance=1.0)]).cond
    torch.testing.assert_close(found, theirs, **NETWORK)
    if clip_skip in (2, 3):
        own = Conditioner(model).encode([request("a red cat", guidance=1.0)]).cond
        assert (found - own).abs().max() > 0.1


def test_half_precision_weighs_in_float32() -> None:
    """The mean is a small number among large ones: summed in bfloat16 it would be noise."""
    model = bundle()
    contexts: list[torch.Tensor] = []
    for dtype in (torch.float32, torch.bfloat16):
        model.text_encoder.to(torch.bfloat16).to(dtype)  # the same rounded weights
        contexts.append(Conditioner(model).encode([request("a (red:1.5) [cat]", guidance=1.0)]).cond)
    full, half = contexts
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() < 0.1, "8 bits of mantissa through four layers, on values about 1 to 3"
