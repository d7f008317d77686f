"""What a weights file or a model folder is, told from its header: no torch, no tensor read, milliseconds.

Content decides, never the file's name. A safetensors file tells names and shapes in its header; a pickle of torch is a
zip archive whose `data.pkl` spells its names, which is searched as text and never run.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from latentgen.checkpoints.compvis_names import text_names, unet_names, vae_names
from latentgen.checkpoints.diffusers_config import PIPELINES
from latentgen.checkpoints.header import Header, is_pickle, open_header
from latentgen.checkpoints.keymap import published_names
from latentgen.checkpoints.layout import CONFIG, INDEX, read_config, weight_files
from latentgen.checkpoints.single_layout import (
    CONFIG_KEY,
    OPEN_CLIP_PREFIXES,
    SGM_PREFIX,
    UNET_PREFIX,
    SingleFile,
    family_of,
    is_single_file_model,
    stated_prediction_type,
)
from latentgen.config import PredictionType
from latentgen.errors import ModelLoadError, ModelNotFoundError
from latentgen.jsonfile import read_json

Kind = Literal[
    "model", "folder", "unet", "vae", "text_encoder", "lora", "textual_inversion", "controlnet", "latents", "probe",
    "unknown",
]  # fmt: skip
"""model: a whole model in one file; folder: a diffusers model folder; latents: what `latentgen encode` writes; probe:
what `latentgen evaluate train-probe` does."""

Format = Literal["safetensors", "pickle", "folder"]

SUPPORTED: Final = frozenset({"SD 1.x", "SD 2.x", "latentgen"})
"""Architectures that can be drawn with."""

MAX_PICKLE_BYTES: Final = 64 * 2**20
"""Of `data.pkl`, which holds names and no numbers: 0.5 MB for SD 1.5."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file or folder is."""

    path: Path
    kind: Kind
    format: Format
    architecture: str | None
    """One of SUPPORTED, or another's: "SDXL", "SD3", "Flux" ...; None if it cannot be told."""
    in_channels: int | None = None
    """Of its U-Net: 4, or 9 for inpainting; None without one."""
    prediction_type: PredictionType | None = None
    """None: there is no U-Net, or only drawing with it would tell (SD 2.x files that do not say)."""
    context_width: int | None = None
    """Width of the text states that it attends to, gives, or was made for."""
    dtypes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Element type -> number of tensors."""
    tensors: int = 0
    parameters: int | None = None
    """None for a pickle, whose shapes are not read."""
    bytes: int = 0
    missing: tuple[str, ...] = ()
    """Tensors that the architecture needs and that are not there; only told of what we can load."""
    unexpected: tuple[str, ...] = ()
    """Tensors that the architecture does not have; those known to be of no use are left out."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_inpainting(self) -> bool:
        return self.in_channels == 9

    @property
    def is_supported(self) -> bool:
        """Whether its architecture is one that we draw with, or cannot be told."""
        return self.architecture is None or self.architecture in SUPPORTED

    @property
    def title(self) -> str:
        """For a message: "an SDXL LoRA", "an SD 1.x inpainting model"."""
        nouns: dict[Kind, str] = {
            "model": "model",
            "folder": "model folder",
            "unet": "U-Net",
            "vae": "VAE",
            "text_encoder": "text encoder",
            "lora": "LoRA",
            "textual_inversion": "textual inversion embedding",
            "controlnet": "ControlNet",
            "latents": "file of pictures as latents, for latentgen decode",
            "probe": "judge of pictures, for latentgen evaluate scenes",
            "unknown": "file of unknown kind",
        }
        words = [self.architecture or "", "inpainting" if self.is_inpainting else "", nouns[self.kind]]
        text = " ".join(filter(None, words))
        return f"{'an' if text.startswith(('SD', 'i')) else 'a'} {text}"


def identify(path: Path) -> Identity:
    """What lies at `path`.

    Raises ModelNotFoundError if nothing does; ModelLoadError for a damaged file and for what is no weights at all: a
    Git LFS pointer, a web page, an empty file, a folder without a model.
    """
    try:
        if path.is_dir():
            return _identify_folder(path)
        with path.open("rb") as file:
            start = file.read(1024)
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if is_pickle(start):
        return _identify_pickle(path)
    return identify_header(open_header(path, quantised=True), path)


def identify_header(header: Header, path: Path) -> Identity:
    """The same of a safetensors header that has been read."""
    shapes = {entry.name: entry.shape for entry in header.entries}
    kind, architecture = kind_of_names(shapes), _architecture(shapes)
    missing: list[str] = []
    unexpected: list[str] = []
    prediction_type: PredictionType | None = None
    if kind == "model" and (architecture in SUPPORTED or CONFIG_KEY in header.metadata):
        try:
            single = SingleFile.of_header(header, path)
        except ModelLoadError:
            prediction_type = stated_prediction_type(header)
        else:
            architecture = family_of(single.config)
            missing, unexpected = single.missing(), single.unexpected()
            prediction_type = single.config.diffusion.prediction_type if single.is_prediction_known else None
    return Identity(
        path=path,
        kind=kind,
        format="safetensors",
        architecture=architecture,
        in_channels=_in_channels(shapes),
        prediction_type=prediction_type,
        context_width=_context_width(shapes),
        dtypes=dict(Counter(entry.dtype for entry in header.entries)),
        tensors=len(shapes),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        bytes=max((entry.end for entry in header.entries), default=0),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        metadata=header.metadata,
    )


def kind_of_names(names: Iterable[str]) -> Kind:
    """What tensors of these names make up. Sources: the formats' own writers; see `keymap.py` and `lora_names.py`."""
    found = list(names)

    def any_has(*parts: str) -> bool:
        return any(part in name for name in found for part in parts)

    def any_starts(*starts: str) -> bool:
        return any(name.startswith(starts) for name in found)

    if any_has(*_LORA_PARTS) or any_starts("lora_"):
        return "lora"
    if any_starts("emb_params", "string_to_param") or {"clip_l", "clip_g"} & set(found):
        return "textual_inversion"
    if any_starts("control_model.", "controlnet_cond_embedding.", "controlnet_"):
        return "controlnet"
    if is_single_file_model(found) or any_starts("conditioner.embedders.", "text_encoders."):
        return "model"
    if any_starts(UNET_PREFIX, "time_embedding.", "time_embed.", "double_blocks.", "joint_blocks.", "time_text_embed."):
        return "unet"
    if any_starts("encoder.conv_in.", "decoder.conv_in.", "first_stage_model.", "quant_conv."):
        return "vae"
    if any_has("token_embedding.") or any_starts("text_model.", "transformer.resblocks."):
        return "text_encoder"
    if found and all(re.fullmatch(r"latents\.[0-9]{5}", name) for name in found):
        return "latents"
    if {"noun", "maps.weight", "gather.weight"} <= set(found):
        return "probe"
    # diffusers saves an embedding as one tensor named after its word, here as a matrix of a few vectors.
    if len(found) == 1 and "." not in found[0]:
        return "textual_inversion"
    return "unknown"


_LORA_PARTS: Final = (
    ".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.", "_lora.down.", "_lora.up.",
    ".lora_linear_layer.", ".hada_w1_", ".lokr_w1", ".oft_blocks", ".dora_scale",
)  # fmt: skip


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """By names that only one family has, then by the width of the text states."""
    # SDXL's refiner and SD 2.x as sgm writes it have the same first embedder.
    names = [name for name in shapes if not name.startswith(SGM_PREFIX)]

    def any_has(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    for family, parts in _FAMILIES.items():
        if any_has(*parts):
            return family
    width = _context_width(shapes)
    return None if width is None else _BY_WIDTH.get(width)


_FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "Flux": ("double_blocks", "single_transformer_blocks"),
    "SD3": ("joint_blocks", "context_embedder", "joint_transformer_blocks"),
    "SDXL": ("conditioner.embedders.", "add_embedding.", "label_emb.", "lora_te2_", "text_encoder_2.", "clip_g"),
    "PixArt": ("adaln_single.",),
    "Stable Cascade": ("clip_txt_pooled_mapper",),
}
_BY_WIDTH: Final = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL"}


def _context_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Last side of what turns text states into keys, else of a text encoder's or an embedding's vectors."""
    for parts in (("attn2.to_k", "attn2_to_k"), ("token_embedding", "emb_params"), ("text_model_encoder_layers",)):
        for name, shape in shapes.items():
            is_input = not name.endswith((".lora_up.weight", ".lora_B.weight", ".lora.up.weight", ".alpha"))
            if is_input and len(shape) >= 2 and any(part in name for part in parts):
                return math.prod(shape[1:]) if len(shape) != 2 else shape[1]
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    return matrices[0][1] if len(shapes) == 1 and matrices else None


def _in_channels(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Of a U-Net's first convolution, under either name; None without one."""
    for name in (f"{UNET_PREFIX}input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight"):
        if len(shapes.get(name, ())) == 4:
            return shapes[name][1]
    return None


def _identify_folder(path: Path) -> Identity:
    if (path / INDEX).exists():
        return foreign_folder(path) or _identify_model_folder(path)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return identify(files[0])
    if (path / CONFIG).exists():
        files = [file for file in files if not file.stem.endswith(".fp16")]
        if files:
            return identify(files[0])
    raise ModelLoadError(f"{path} is not a model folder: it has no {INDEX}")


def _identify_model_folder(path: Path) -> Identity:
    """A folder of Stable Diffusion. Raises ModelLoadError for configs that our networks cannot be."""
    config = read_config(path)
    expected = {
        "unet": set(unet_names(config.unet)),
        "vae": set(vae_names(config.vae)),
        "text_encoder": set(text_names(config.text_encoder)),
    }
    missing: list[str] = []
    unexpected: list[str] = []
    dtypes: Counter[str] = Counter()
    tensors = parameters = size = 0
    for part in ("unet", "vae", "text_encoder"):
        found: set[str] = set()
        for file in weight_files(path / part, part):
            header = open_header(file, quantised=True)
            found |= {entry.name for entry in header.entries}
            dtypes.update(entry.dtype for entry in header.entries)
            tensors += len(header.entries)
            parameters += sum(math.prod(entry.shape) for entry in header.entries)
            size += file.stat().st_size
        found = set(published_names(part, found).values())
        missing += [f"{part}/{name}" for name in sorted(expected[part] - found)]
        unexpected += [f"{part}/{name}" for name in sorted(found - expected[part])]
    return Identity(
        path=path,
        kind="folder",
        format="folder",
        architecture=family_of(config),
        in_channels=config.unet.in_channels,
        prediction_type=config.diffusion.prediction_type,
        context_width=config.unet.cross_attention_dim,
        dtypes=dict(dtypes),
        tensors=tensors,
        parameters=parameters,
        bytes=size,
        missing=tuple(missing),
        unexpected=tuple(unexpected),
    )


def foreign_folder(path: Path) -> Identity | None:
    """A model folder that draws with other networks than ours, named after its pipeline class; None if it is none."""
    pipeline = str(read_json(path / INDEX).get("_class_name", "")) if (path / INDEX).exists() else None
    if pipeline is None or pipeline in PIPELINES:
        return None
    families = {"StableDiffusionXL": "SDXL", "StableDiffusion3": "SD3", "Flux": "Flux"}
    known = next((family for start, family in families.items() if pipeline.startswith(start)), None)
    return Identity(path, "folder", "folder", known or pipeline.removesuffix("Pipeline") or "unknown")


def _identify_pickle(path: Path) -> Identity:
    """A torch pickle by the names spelled in it. A bare pickle, as torch before 1.6 wrote them, stays unknown."""
    text = b""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if entry.filename.endswith("data.pkl") and entry.file_size <= MAX_PICKLE_BYTES:
                        text = archive.read(entry)
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            raise ModelLoadError(f"{path} is a damaged zip archive: {error}") from None
    names = [name.decode("ascii", "replace") for name in _SPELLED if name in text]
    kind = kind_of_names(names)
    architecture = _architecture(dict.fromkeys(names, ()))
    if architecture is None and set(OPEN_CLIP_PREFIXES.values()) & set(names):
        architecture = "SD 2.x"
    elif architecture is None and kind == "model":
        architecture = "SD 1.x"
    return Identity(path, kind, "pickle", architecture, bytes=path.stat().st_size)


_SPELLED: Final = (
    b"model.diffusion_model.", b"first_stage_model.", b"cond_stage_model.transformer.", b"cond_stage_model.model.",
    b"conditioner.embedders.0.model.", b"conditioner.embedders.0.transformer.", b"conditioner.embedders.1.",
    b"label_emb.", b"string_to_param", b"lora_unet_", b"lora_te_", b"control_model.", b"decoder.conv_in.",
    b"text_model.",
)  # fmt: skip
"""Beginnings of names that tell what a pickle holds."""
