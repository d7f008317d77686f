"""Our CLIP, both towers, in the format of the published ones: transformers' `CLIPModel`, one safetensors file.

What train-clip learns besides the text encoder: the image tower, the projections into the space both share, and the
logit scale. `CLIPModel.from_pretrained` opens it, a later run goes on from it, and a perceptual loss looks through it.
open_clip's names are mapped by a table, both ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final, get_args

import torch
from torch import Tensor

from latentgen.checkpoints.config_file import ConfigFile
from latentgen.checkpoints.diffusers_config import read_text_encoder
from latentgen.checkpoints.folder import load_text_encoder, save_clip
from latentgen.checkpoints.io import load_strict, read_tensors, without_numbers
from latentgen.checkpoints.keymap import OPEN_CLIP_TEXT, Rule, apply_rules, to
from latentgen.checkpoints.layout import CONFIG, find_weights, part_folder
from latentgen.config import Activation, ImageTowerConfig, TextEncoderConfig
from latentgen.errors import ModelLoadError
from latentgen.models.clip_image import CLIPImageModel

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""What every published CLIP subtracts from pixels in [0, 1], and divides them by (`openai/CLIP`, `clip/clip.py`)."""


def _transpose(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous()


def _vision(name: str) -> str:
    return name.replace("text_model.encoder", "vision_model.encoder")


OPEN_CLIP: Final[Mapping[str, Rule]] = {
    "logit_scale": to("logit_scale"),
    "text.text_projection": to("text_projection.weight", transform=_transpose),
    "visual.proj": to("visual_projection.weight", transform=_transpose),
    "visual.class_embedding": to("vision_model.embeddings.class_embedding"),
    "visual.positional_embedding": to("vision_model.embeddings.position_embedding.weight"),
    "visual.conv1.weight": to("vision_model.embeddings.patch_embedding.weight"),
    "visual.ln_pre.weight": to("vision_model.pre_layrnorm.weight"),
    "visual.ln_pre.bias": to("vision_model.pre_layrnorm.bias"),
    "visual.ln_post.weight": to("vision_model.post_layernorm.weight"),
    "visual.ln_post.bias": to("vision_model.post_layernorm.bias"),
    **{
        f"visual.{name}": to(*map(_vision, rule.targets))
        for name, rule in OPEN_CLIP_TEXT.items()
        if name.startswith("transformer.")
    },
    **{f"text.{name}": rule for name, rule in OPEN_CLIP_TEXT.items() if rule.targets},
}
"""open_clip's `CustomTextCLIP` -> transformers' `CLIPModel`; each transform is its own reverse."""


def save_towers(towers: Mapping[str, Tensor], text: TextEncoderConfig, image: ImageTowerConfig, folder: Path) -> None:
    """Write open_clip's towers into `folder` itself. Written aside and raises as `save_model`."""
    config: dict[str, object] = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.projection_dim,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "text_config": {"model_type": "clip_text_model", "attention_dropout": 0.0, **asdict(text)},
        "vision_config": {
            "model_type": "clip_vision_model",
            "attention_dropout": 0.0,
            "hidden_act": image.hidden_act,
            "hidden_size": image.width,
            "image_size": image.side_px,
            "intermediate_size": int(image.width * image.mlp_ratio),
            "layer_norm_eps": 1e-5,
            "num_attention_heads": image.width // image.head_width,
            "num_channels": 3,
            "num_hidden_layers": image.layers,
            "patch_size": image.patch_px,
            "projection_dim": text.projection_dim,
        },
    }
    save_clip(config, apply_rules(OPEN_CLIP, towers, "the trained towers"), folder)


def read_image_tower(folder: Path) -> ImageTowerConfig:
    """The image tower of a CLIP folder in numbers. Raises ModelLoadError for one that ours cannot be."""
    file = ConfigFile(part_folder(folder, "clip") / CONFIG)
    file.choice("model_type", ("clip",))
    vision = file.section("vision_config", "vision_config_dict")
    vision.must_be({"num_channels": 3, "layer_norm_eps": 1e-5})
    width, heads = vision.integer("hidden_size", 768), vision.integer("num_attention_heads", 12)
    if width % heads:
        raise vision.wrong("num_attention_heads", f"it must divide hidden_size {width}")
    activations: tuple[Activation, ...] = get_args(Activation)
    return vision.build(
        ImageTowerConfig,
        side_px=vision.integer("image_size", 224),
        patch_px=vision.integer("patch_size", 32),
        width=width,
        layers=vision.integer("num_hidden_layers", 12),
        head_width=width // heads,
        mlp_ratio=vision.integer("intermediate_size", 3072) / width,
        hidden_act=vision.choice("hidden_act", activations, "quick_gelu"),
    )


def load_image_tower(folder: Path) -> CLIPImageModel:
    """The image tower of a CLIP folder, ours or a published one, in evaluation mode.

    Raises ModelNotFoundError if there is no such folder, ModelLoadError naming the file and what is wrong with it.
    """
    own = part_folder(folder, "clip")
    with without_numbers():
        tower = CLIPImageModel(read_image_tower(own))
    path = find_weights(own, "clip")
    prefix, counted = "vision_model.", "embeddings.position_ids"
    tensors = {n.removeprefix(prefix): value for n, value in read_tensors(path).items() if n.startswith(prefix)}
    load_strict(tower, {name: value for name, value in tensors.items() if name != counted}, path)
    return tower.eval()


def read_init_towers(folder: Path) -> tuple[TextEncoderConfig, ImageTowerConfig | None]:
    """What a training run goes on from: the text tower of a model folder, and its image tower if it holds a `clip/`.

    Raises as `load_image_tower`.
    """
    text = read_text_encoder(part_folder(folder, "text_encoder") / CONFIG)
    return text, read_image_tower(folder) if (folder / "clip").is_dir() else None


def load_init_towers(folder: Path) -> dict[str, Tensor]:
    """The tensors of what `read_init_towers` reads, under transformers' names."""
    if (folder / "clip").is_dir():
        return read_tensors(find_weights(folder / "clip", "clip"))
    return dict(load_text_encoder(folder).state_dict())


def as_open_clip(
    published: Mapping[str, Tensor], towers: Mapping[str, Tensor], source: str | Path
) -> dict[str, Tensor]:
    """Tensors under transformers' names as those of `towers` that they are; what is not among them is left out.

    `towers` is an open_clip state dict: it says which names there are, and their shapes.
    Raises ModelLoadError for a tensor of another shape.
    """
    patterns = [(re.compile(re.escape(name).replace(r"\{\}", r"(\d+)")), rule) for name, rule in OPEN_CLIP.items()]
    found: dict[str, Tensor] = {}
    for name, wanted in towers.items():
        match, rule = next((match, rule) for pattern, rule in patterns if (match := pattern.fullmatch(name)))
        sources = [target.format(*match.groups()) for target in rule.targets]
        if not all(each in published for each in sources):
            continue
        value = published[sources[0]] if len(sources) == 1 else torch.cat([published[each] for each in sources])
        value = value if rule.transform is None else rule.transform(value)
        if value.shape != wanted.shape:
            raise ModelLoadError(f"{source}: {sources[0]} does not fit: {tuple(value.shape)} for {tuple(wanted.shape)}")
        found[name] = value.to(wanted.dtype)
    return found
