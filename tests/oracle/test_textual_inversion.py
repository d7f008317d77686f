"""Textual inversions, in each form of their files, against what diffusers makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from latentgen.checkpoints.folder import save_model
from latentgen.checkpoints.textual_inversion import look_at_embedding, read_embedding
from latentgen.errors import InputError, LatentgenError, ModelLoadError, ModelNotFoundError
from latentgen.pipeline.conditioning import Conditioner
from latentgen.request import EmbeddingUse, GenerationRequest, complete_request
from tests.oracle.test_folder import NETWORK
from tests.tiny import TINY_MODEL, TINY_TEXT
from tests.tiny_bundle import tiny_bundle

WIDTH = TINY_TEXT.hidden_size


def request(prompt: str, *embeddings: EmbeddingUse, negative: str = "") -> GenerationRequest:
    return replace(complete_request(TINY_MODEL, prompt=prompt, negative_prompt=negative, seed=1), embeddings=embeddings)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny_bundle(), folder)
    return folder


@pytest.mark.parametrize(
    ("file", "tensor", "count", "token"),
    [
        ("learned_embeds.safetensors", "<cat-toy>", 1, "<cat-toy>"),
        ("learned_embeds.safetensors", "<cat-toy>", 3, "<cat-toy>"),
        ("easy-neg.safetensors", "emb_params", 4, "easy-neg"),
        ("other.safetensors", "string_to_param.*", 2, "other"),
    ],
)
@pytest.mark.parametrize("prompt", ["a photo of {}, on a table", "{}", "{} and {}"])
def test_contexts_as_in_diffusers(
    prompt: str, file: str, tensor: str, count: int, token: str, model_folder: Path, tmp_path: Path
) -> None:
    vectors = torch.randn(count, WIDTH)
    save_file({tensor: vectors}, tmp_path / file)
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None)
    # In its own form it finds the token by itself; the others are given to it as tensors.
    state = tmp_path / file if tensor == token else vectors
    pipeline.load_textual_inversion(state, **({} if tensor == token else {"token": token}))
    text = prompt.format(token, token)
    theirs, their_uncond = pipeline.encode_prompt(
        "a dog", "cpu", 1, do_classifier_free_guidance=True, negative_prompt=text
    )

    conditioner = Conditioner(tiny_bundle())
    use = conditioner.add_embedding(tmp_path / file)
    assert use.name == token
    ours = conditioner.encode([request("a dog", use, negative=text)])
    assert ours.uncond is not None
    torch.testing.assert_close(ours.cond, theirs, **NETWORK)
    torch.testing.assert_close(ours.uncond, their_uncond, **NETWORK)
    without = conditioner.encode([request("a dog", negative=text)]).uncond
    assert without is not None
    assert (ours.uncond - without).abs().max() > 0.1


def test_a_vector_without_a_first_axis_is_one(tmp_path: Path) -> None:
    vector = torch.randn(WIDTH)
    save_file({"<x>": vector}, tmp_path / "x.safetensors")
    file = look_at_embedding(tmp_path / "x.safetensors")
    assert (file.name, file.vectors, file.width) == ("<x>", 1, WIDTH)
    assert torch.equal(read_embedding(file), vector[None])


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    vectors = torch.randn(2, WIDTH).half()
    save_file({"emb_params": vectors}, tmp_path / "x.safetensors")
    assert torch.equal(read_embedding(look_at_embedding(tmp_path / "x.safetensors")), vectors.float())


def test_weights_act_on_every_vector(tmp_path: Path) -> None:
    save_file({"emb_params": torch.randn(3, WIDTH)}, tmp_path / "toy.safetensors")
    conditioner = Conditioner(tiny_bundle())
    use = conditioner.add_embedding(tmp_path / "toy.safetensors")
    plain, loud = (conditioner.encode([request(text, use)]).cond[0] for text in ("a toy b", "a (toy:2) b"))
    ratios = (loud / plain).mean(dim=1)
    torch.testing.assert_close(ratios[2:5], 2 * ratios[1].expand(3), rtol=1e-5, atol=0)
    torch.testing.assert_close(ratios[5:], ratios[1].expand(72), rtol=1e-5, atol=0)


def test_an_embedding_that_was_not_added_is_named(tmp_path: Path) -> None:
    conditioner = Conditioner(tiny_bundle())
    use = EmbeddingUse(name="toy", fingerprint="0123456789")
    with pytest.raises(InputError, match=r"embedding toy \(0123456789\) is not loaded"):
        conditioner.check(request("a toy", use))


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By their contents: what was remembered of the first is not taken for the second."""
    conditioner = Conditioner(tiny_bundle())
    contexts: list[torch.Tensor] = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        save_file({"emb_params": torch.randn(2, WIDTH)}, tmp_path / folder / "toy.safetensors")
        use = conditioner.add_embedding(tmp_path / folder / "toy.safetensors")
        contexts.append(conditioner.encode([request("a toy", use)]).cond)
    assert (contexts[0] - contexts[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, "two text encoders .clip_g, clip_l"),
        ({"a": torch.ones(2, 4), "b": torch.ones(2, 4)}, "it holds 2 tensors, not one"),
        ({"emb_params": torch.ones(76, 4)}, r"its tensor is \(76, 4\) .1 to 75"),
        ({"emb_params": torch.ones(2, 2, 4)}, r"its tensor is \(2, 2, 4\)"),
        ({"emb_params": torch.ones(2, WIDTH + 1)}, f"vectors are {WIDTH + 1} wide, the text encoder's {WIDTH}"),
        ({"emb_params": torch.full((2, WIDTH), float("nan"))}, "not a finite fraction"),
        ({"emb_params": torch.ones(2, WIDTH, dtype=torch.int64)}, "not a finite fraction"),
        ({" ": torch.ones(2, WIDTH)}, "its name is empty"),
        ({"a\x07": torch.ones(2, WIDTH)}, "x"),
    ],
)
def test_files_that_are_something_else_say_what(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelLoadError, match=message):
        Conditioner(tiny_bundle()).add_embedding(tmp_path / "x.safetensors")


def test_pickles_are_never_opened_and_missing_files_are_named(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": torch.ones(1, WIDTH)}, "name": "x"}, tmp_path / "x.pt")
    with pytest.raises(ModelLoadError, match="is a pickle"):
        look_at_embedding(tmp_path / "x.pt")
    with pytest.raises(ModelNotFoundError, match="there is no embedding file"):
        look_at_embedding(tmp_path / "y.safetensors")
    with pytest.raises(LatentgenError, match="cannot be read"):
        look_at_embedding(tmp_path)
