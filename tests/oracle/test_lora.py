"""Our LoRA files in diffusers, and our adapters beside peft's: the same numbers, gradients and pictures.

Tolerances: as in `test_folder.py` (float32 sums in another order), because the adapters are computed by the same
expressions (measured: 4e-5 in latents, 8e-6 in pixels); float64 where gradients are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from latentgen.checkpoints.folder import ModelBundle, save_model
from latentgen.checkpoints.lora import (
    FILE_NAMES,
    Form,
    LoRAWeights,
    base_metadata,
    read_lora,
    write_lora,
)
from latentgen.checkpoints.lora_names import Targets, is_target, kohya_name
from latentgen.config import ModelConfig
from latentgen.models.clip_text import CLIPTextModel as OurTextModel
from latentgen.models.lora import AdapterSize, LoRANetwork, layers_of
from latentgen.models.unet import UNet
from latentgen.pipeline.adapters import Adapters
from latentgen.presets import EMBEDDED, SD15, SD21_BASE
from tests.merged import apply_lora
from tests.oracle.test_folder import (
    CONFIGS,
    GENERATION,
    NETWORK,
    PROMPT,
    SD1_LIKE,
    complaints,
    ours_generate,
    starting_noise,
    theirs_generate,
    tiny_bundle,
)
from tests.oracle.test_unet import build_pair, diffusers_unet, inputs
from tests.tiny import TINY_UNET, randomize

__all__ = ["complaints"]

FORMS = pytest.mark.parametrize("form", ["kohya", "diffusers"])


def adapted(bundle: ModelBundle, *, mixed: bool = False) -> LoRANetwork:
    """Trained adapters, as it were, on every layer that can have one; alpha is not the rank."""
    layers = [name for name in layers_of(bundle.unet, bundle.text_encoder) if is_target(name, "all")]
    sizes = {
        name: AdapterSize(2 + i % 3, 1.5 + i % 4) if mixed else AdapterSize(4, 3.0) for i, name in enumerate(layers)
    }
    network = LoRANetwork(bundle.unet, bundle.text_encoder, sizes)
    randomize(network, seed=5)
    return network


def lora_of(network: LoRANetwork, config: ModelConfig = SD1_LIKE) -> LoRAWeights:
    return LoRAWeights(network.updates(), "kohya", base_metadata(config))


@FORMS
@CONFIGS
@torch.no_grad()
def test_our_file_in_diffusers(config: ModelConfig, form: Form, tmp_path: Path, complaints: list[str]) -> None:
    bundle = tiny_bundle(config)
    save_model(bundle, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    plain, _ = ours_generate(bundle, "ddim")
    write_lora(tmp_path / FILE_NAMES[form], lora_of(adapted(bundle)), form)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE_NAMES[form])
    assert complaints == []

    context = bundle.text_encoder(bundle.tokenizer.encode([PROMPT]))
    torch.testing.assert_close(context, pipeline.text_encoder(bundle.tokenizer.encode([PROMPT]))[0], **NETWORK)
    x, t = starting_noise(bundle), torch.tensor([421])
    torch.testing.assert_close(bundle.unet(x, t, context), pipeline.unet(x, t, context).sample, **NETWORK)
    latents, pixels = ours_generate(bundle, "ddim")
    theirs_latents, theirs_pixels = theirs_generate(pipeline, starting_noise(bundle))
    torch.testing.assert_close(latents, theirs_latents, **GENERATION)
    torch.testing.assert_close(pixels, theirs_pixels, **GENERATION)
    assert (latents - plain).abs().max() > 0.1, "the adapters change the picture"


@torch.no_grad()
def test_mixed_ranks_in_diffusers(tmp_path: Path, complaints: list[str]) -> None:
    """Ranks and alphas that differ from layer to layer, as peft's rank_pattern and alpha_pattern."""
    bundle = tiny_bundle(SD1_LIKE)
    save_model(bundle, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    write_lora(tmp_path / FILE_NAMES["diffusers"], lora_of(adapted(bundle, mixed=True)), "diffusers")
    pipeline.load_lora_weights(tmp_path, weight_name=FILE_NAMES["diffusers"])
    assert complaints == []
    context = bundle.text_encoder(bundle.tokenizer.encode([PROMPT]))
    torch.testing.assert_close(context, pipeline.text_encoder(bundle.tokenizer.encode([PROMPT]))[0], **NETWORK)
    x, t = starting_noise(bundle), torch.tensor([421])
    torch.testing.assert_close(bundle.unet(x, t, context), pipeline.unet(x, t, context).sample, **NETWORK)


@torch.no_grad()
def test_diffusers_file_in_ours(tmp_path: Path) -> None:
    """A file as diffusers' own training scripts write it, with lora_alpha twice the rank."""
    bundle = tiny_bundle(SD1_LIKE)
    save_model(bundle, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    layers = ["to_k", "to_q", "to_v", "to_out.0", "conv1"]
    unet_config = LoraConfig(r=3, lora_alpha=6, target_modules=layers, init_lora_weights=False)
    text_config = LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    pipeline.unet.add_adapter(unet_config)
    pipeline.text_encoder.add_adapter(text_config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "lora",
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.text_encoder)),
        **_collate_lora_metadata({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}),
    )
    lora = read_lora(tmp_path / "lora" / FILE_NAMES["diffusers"])
    assert str(apply_lora(bundle, lora)) == f"{len(lora.modules)}/{len(lora.modules)} modules applied"
    context = bundle.text_encoder(bundle.tokenizer.encode([PROMPT]))
    torch.testing.assert_close(context, pipeline.text_encoder(bundle.tokenizer.encode([PROMPT]))[0], **NETWORK)
    x, t = starting_noise(bundle), torch.tensor([421])
    torch.testing.assert_close(bundle.unet(x, t, context), pipeline.unet(x, t, context).sample, **NETWORK)


def test_forward_and_gradients_equal_peft() -> None:
    ours, theirs = build_pair(TINY_UNET)
    names = [name for name in layers_of(ours, None) if is_target(name, "all")]
    network = LoRANetwork(ours, None, {name: AdapterSize(3, 2.0) for name in names}).double()
    paths = [name.removeprefix("unet.") for name in names]
    theirs.add_adapter(LoraConfig(r=3, lora_alpha=2.0, target_modules=paths))
    for path, update in zip(paths, randomized(network).updates().values(), strict=True):
        layer = theirs.get_submodule(path)
        layer.lora_A["default"].weight.data = update.down.clone()
        layer.lora_B["default"].weight.data = update.up.clone()
    x, t, context = inputs(TINY_UNET)
    target = torch.randn_like(x)
    predicted, expected = network(x, t, context), theirs(x, t, context).sample
    torch.testing.assert_close(predicted, expected, rtol=1e-9, atol=1e-9)
    (predicted - target).square().mean().backward()
    (expected - target).square().mean().backward()
    assert {name for name, p in theirs.named_parameters() if p.grad is not None} == {
        f"{path}.lora_{side}.default.weight" for path in paths for side in "AB"
    }
    for name, path in zip(names, paths, strict=True):
        layer, adapter = theirs.get_submodule(path), network.adapters[name.replace(".", "_")]
        for parameter, their_parameter in (
            (adapter.down.weight, layer.lora_A["default"].weight),
            (adapter.up.weight, layer.lora_B["default"].weight),
        ):
            assert their_parameter.grad.abs().max() > 0, f"{name}: a zero gradient proves nothing"
            torch.testing.assert_close(parameter.grad, their_parameter.grad, rtol=1e-8, atol=1e-12)
    assert all(parameter.grad is None for parameter in ours.parameters()), "the base is frozen"


def randomized(network: LoRANetwork) -> LoRANetwork:
    randomize(network, seed=3)
    return network


@CONFIGS
@torch.no_grad()
def test_merged_equals_unmerged(config: ModelConfig) -> None:
    merged, unmerged = tiny_bundle(config), tiny_bundle(config)
    lora = lora_of(adapted(unmerged, mixed=True))
    apply_lora(merged, lora, 0.25)
    apply_lora(merged, lora, 0.75)
    ids = merged.tokenizer.encode([PROMPT])
    context = unmerged.text_encoder(ids)
    torch.testing.assert_close(merged.text_encoder(ids), context, **NETWORK)
    x, t = starting_noise(merged), torch.tensor([421])
    torch.testing.assert_close(merged.unet(x, t, context), unmerged.unet(x, t, context), **NETWORK)


TWO = {"first": ("kohya", 0.7), "second": ("diffusers", -0.4)}
"""Two LoRAs: the form of the file, and the scale."""


def write_two(folder: Path) -> Mapping[str, Path]:
    """Two LoRAs that change U-Net and text encoder, of different ranks and alphas."""
    folder.mkdir()
    for seed, (name, (form, _)) in enumerate(TWO.items()):
        network = adapted(tiny_bundle(SD1_LIKE), mixed=name == "second")
        randomize(network, seed=20 + seed)
        write_lora(folder / f"{name}.safetensors", lora_of(network), form)
    return {name: folder / f"{name}.safetensors" for name in TWO}


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True], ids=["beside the layers", "fused"])
def test_two_weighted_loras_draw_diffusers_picture(fused: bool, tmp_path: Path) -> None:
    bundle = tiny_bundle(SD1_LIKE)
    save_model(bundle, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    plain, _ = ours_generate(bundle, "ddim")
    adapters, uses = Adapters(bundle), []
    for name, path in write_two(tmp_path / "loras").items():
        uses.append(adapters.add(path, scale=TWO[name][1]))
        pipeline.load_lora_weights(tmp_path / "loras", weight_name=path.name, adapter_name=name)
    pipeline.set_adapters(list(TWO), [scale for _, scale in TWO.values()])
    if fused:
        pipeline.fuse_lora(adapter_names=list(TWO))
        pipeline.unload_lora_weights()
    adapters.use(tuple(uses))

    latents, pixels = ours_generate(bundle, "ddim")
    theirs_latents, theirs_pixels = theirs_generate(pipeline, starting_noise(bundle))
    torch.testing.assert_close(latents, theirs_latents, **GENERATION)
    torch.testing.assert_close(pixels, theirs_pixels, **GENERATION)
    assert (latents - plain).abs().max() > 0.1, "the LoRAs change the picture"


@torch.no_grad()
def test_scale_is_fuse_loras(tmp_path: Path) -> None:
    """One LoRA at 0.3: `fuse_lora(lora_scale=0.3)`."""
    bundle = tiny_bundle(SD1_LIKE)
    save_model(bundle, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    path = write_two(tmp_path / "loras")["first"]
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    pipeline.fuse_lora(lora_scale=0.3)
    pipeline.unload_lora_weights()
    adapters = Adapters(bundle)
    adapters.use((adapters.add(path, scale=0.3),))
    for name, layer in layers_of(bundle.unet, bundle.text_encoder).items():
        part, _, inner = name.partition(".")
        theirs = getattr(pipeline, part).get_submodule(inner.removeprefix("text_model.") if part != "unet" else inner)
        torch.testing.assert_close(layer.weight, theirs.weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@torch.no_grad()
def test_pefts_own_file(part: str, tmp_path: Path) -> None:
    """`adapter_model.safetensors`, whose alphas stand in the file beside it: not the rank, and another for some."""
    bundle = tiny_bundle(SD1_LIKE)
    save_model(bundle, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    targets, other = (["to_q", "to_v", "to_out.0"], "to_v") if part == "unet" else (["q_proj", "fc1"], "fc1")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, alpha_pattern={other: 2})
    theirs = get_peft_model(getattr(pipeline, part), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    adapters = Adapters(bundle)
    use = adapters.add(tmp_path / "adapter" / "adapter_model.safetensors")
    assert adapters.report(use).unmatched == ()
    token_ids = bundle.tokenizer.encode([PROMPT])
    x, t = starting_noise(bundle), torch.tensor([421])
    before = bundle.unet(x, t, bundle.text_encoder(token_ids))
    adapters.use((use,))
    after = bundle.unet(x, t, bundle.text_encoder(token_ids))
    if part == "unet":
        expected = theirs(x, t, pipeline.text_encoder(token_ids)[0]).sample
    else:
        expected = pipeline.unet(x, t, theirs(token_ids)[0]).sample
    torch.testing.assert_close(after, expected, **NETWORK)
    assert (after - before).abs().max() > 1e-2


@torch.no_grad()
def test_oldest_names_of_diffusers(tmp_path: Path) -> None:
    """`attn1.processor.to_q_lora.down`, as diffusers wrote before it used peft; it still reads them."""
    bundle = tiny_bundle(SD1_LIKE)
    save_model(bundle, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    layers = {name: layer for name, layer in layers_of(bundle.unet, None).items() if is_target(name, "attention")}
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        block, _, projection = name.removesuffix(".0").rpartition(".")
        for side, shape in (("down", (3, layer.weight.shape[1])), ("up", (layer.weight.shape[0], 3))):
            tensors[f"{block}.processor.{projection}_lora.{side}.weight"] = torch.randn(shape) * 0.3
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors", {"format": "pt"})
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    adapters = Adapters(bundle)
    use = adapters.add(tmp_path / "pytorch_lora_weights.safetensors")
    assert str(adapters.report(use)) == f"{len(layers)}/{len(layers)} modules applied"
    adapters.use((use,))
    context = bundle.text_encoder(bundle.tokenizer.encode([PROMPT]))
    x, t = starting_noise(bundle), torch.tensor([421])
    torch.testing.assert_close(bundle.unet(x, t, context), pipeline.unet(x, t, context).sample, **NETWORK)


def test_oldest_names_of_diffusers_in_the_text_encoder(tmp_path: Path) -> None:
    """`self_attn.to_q_lora.down`: by diffusers' own table, every layer of the text encoder's attention."""
    bundle = tiny_bundle(SD1_LIKE)
    old = {".q_proj": ".to_q", ".k_proj": ".to_k", ".v_proj": ".to_v", ".out_proj": ".to_out"}
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers_of(bundle.unet, bundle.text_encoder).items():
        ending = next((ending for ending in old if name.startswith("text_encoder.") and name.endswith(ending)), None)
        if ending is not None:
            place = f"{name.removesuffix(ending)}{old[ending]}_lora"
            tensors[f"{place}.down.weight"] = torch.randn(3, layer.weight.shape[1])
            tensors[f"{place}.up.weight"] = torch.randn(layer.weight.shape[0], 3)
    assert len(tensors) == 2 * 4 * SD1_LIKE.text_encoder.num_hidden_layers
    save_file(tensors, tmp_path / "old.safetensors")
    read = read_lora(tmp_path / "old.safetensors")
    assert read.unmatched == ()
    ours = {f"{name}.lora_A.weight": update.down for name, update in read.modules.items()}
    ours |= {f"{name}.lora_B.weight": update.up for name, update in read.modules.items()}
    wanted = convert_state_dict_to_peft(tensors)
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in ours)


@torch.no_grad()
def test_fresh_adapters_change_nothing() -> None:
    """Not the last bit."""
    plain, fresh = tiny_bundle(SD1_LIKE), tiny_bundle(SD1_LIKE)
    layers = layers_of(fresh.unet, fresh.text_encoder)
    sizes = {name: AdapterSize(4, 4.0) for name in layers if is_target(name, "all")}
    network = LoRANetwork(fresh.unet, fresh.text_encoder, sizes)
    ids, x, t = plain.tokenizer.encode([PROMPT]), starting_noise(plain), torch.tensor([421])
    assert torch.equal(network(x, t, ids), plain.unet(x, t, plain.text_encoder(ids)))


# The names, at the size of SD 1.5


def kohya_names(root: torch.nn.Module, prefix: str, classes: set[str]) -> set[str]:
    """kohya's rule (sd-scripts `networks/lora.py`, `create_modules`): layers inside modules of these classes."""
    return {
        f"{prefix}_{path}".replace(".", "_")
        for outer, module in root.named_modules()
        if type(module).__name__ in classes
        for inner, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        for path in [f"{outer}.{inner}" if inner else outer]
    }


@pytest.mark.parametrize(
    ("targets", "classes", "count"),
    [
        ("attention", {"Attention"}, 128),
        ("attention+ff", {"Transformer2DModel"}, 192),
        ("all", {"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"}, 278),
    ],
)
def test_names_of_sd15(targets: Targets, classes: set[str], count: int) -> None:
    with torch.device("meta"):
        ours, theirs = UNet(SD15.unet), diffusers_unet(SD15.unet)
    names = {kohya_name(name) for name in layers_of(ours, None) if is_target(name, targets)}
    assert names == kohya_names(theirs, "lora_unet", classes)
    assert len(names) == count


def test_names_of_the_text_encoder_of_sd15() -> None:
    text = SD15.text_encoder
    shape = CLIPTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    with torch.device("meta"):
        ours, theirs, unet = OurTextModel(text), CLIPTextModel(shape), UNet(TINY_UNET)
    names = {
        kohya_name(name)
        for name in layers_of(unet, ours)
        if name.startswith("text_encoder.") and is_target(name, "attention")
    }
    # transformers 5 has left `text_model.` out of its module paths; files keep it.
    expected = {
        name if name.startswith("lora_te_text_model_") else name.replace("lora_te_", "lora_te_text_model_")
        for name in kohya_names(theirs, "lora_te", {"CLIPAttention", "CLIPMLP"})
    }
    assert names == expected
    assert len(names) == 72


def test_base_models_that_kohya_has_a_name_for() -> None:
    assert base_metadata(SD15) == {"ss_base_model_version": "sd_v1", "ss_v2": "False"}
    assert base_metadata(SD21_BASE) == {"ss_base_model_version": "sd_v2", "ss_v2": "True"}
    v = replace(SD21_BASE, diffusion=replace(SD21_BASE.diffusion, prediction_type="v_prediction"))
    assert base_metadata(v)["ss_base_model_version"] == "sd_v2_v"
    assert base_metadata(EMBEDDED) == {}
