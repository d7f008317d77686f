"""What lies where in a single-file model, and its header as one ModelConfig. No torch, no weights.

The format is CompVis': one flat file with the U-Net, the autoencoder and the text encoder under a prefix each. Nothing
in it says what it is, so that follows from names and shapes: SD 1.x has OpenAI's CLIP in transformers' names and a
context 768 wide, SD 2.x has OpenCLIP in its own names and a context 1024 wide. Files of ours also say it in words: the
objects of a model folder's JSON files lie under `latentgen.config` in the header.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, Final, Literal, cast

from latentgen.checkpoints.compvis_names import text_names, unet_names, vae_names
from latentgen.checkpoints.diffusers_config import (
    read_defaults,
    read_scheduler,
    read_text_encoder,
    read_unet,
    read_vae,
    write_model_index,
    write_scheduler,
    write_text_encoder,
    write_unet,
    write_vae,
)
from latentgen.checkpoints.header import Header, TensorEntry, open_header
from latentgen.checkpoints.keymap import OPEN_CLIP_TEXT
from latentgen.config import ModelConfig, PredictionType, TextEncoderConfig, VAEConfig
from latentgen.errors import ConfigError, ModelLoadError
from latentgen.presets import SD15, SD21_BASE, SD21_V, SD_VAE

UNET_PREFIX: Final = "model.diffusion_model."
VAE_PREFIX: Final = "first_stage_model."
CLIP_PREFIX: Final = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX: Final = "cond_stage_model.model."
SGM_PREFIX: Final = "conditioner.embedders.0.model."

CONFIG_KEY: Final = "latentgen.config"
"""Of the header's metadata: a model folder's JSON files as one object, `{"unet": {...}, "vae": {...}, ...}`."""

TextForm = Literal["clip", "bare clip", "open_clip", "sgm"]
"""How the text encoder is named: transformers' names, the same without `text_model.`, or open_clip's, under CompVis'
prefix or where Stability's sgm puts them."""
OPEN_CLIP_PREFIXES: Final[Mapping[TextForm, str]] = {"open_clip": OPEN_CLIP_PREFIX, "sgm": SGM_PREFIX}
"""The forms of SD 2.x, as ComfyUI reads them (`comfy/supported_models.py`, SD20)."""

_IGNORED: Final = re.compile(
    r"""
    model_ema\..*                                               # a second U-Net: averaged weights to train on from
    | (.*\.)?loss\..*                                           # discriminator and perceptual network of the VAE
    | (betas | alphas_cumprod(_prev)? | (sqrt_|log_)?one_minus_alphas_cumprod | sqrt_(one_minus_)?alphas_cumprod
       | sqrt_recip(m1)?_alphas_cumprod | posterior_(variance | log_variance_clipped | mean_coef[12])
       | lvlb_weights | logvar | scale_factor | denoiser\.sigmas)   # the noise schedule, which the config states
    | v_pred | ztsnr                                            # marks without a value
    | (cond_stage_model\.(transformer\.|model\.)? | conditioner\.embedders\.0\.(model\.)?)
      (logit_scale | text_projection(\.weight)? | attn_mask)
    | cond_stage_model\.(model\.)?transformer\.(text_model\.)?embeddings\.position_ids   # counted positions
    | embedding_manager\..*                                     # textual inversion's, which DreamBooth's code keeps
    """,
    re.VERBOSE,
)
"""Known, and of no use for drawing. Everything else that no network of ours takes is an error."""

_SPREAD_OF_V: Final = 0.09
"""Where the bias of `_TELLTALE` is spread wider than this, the SD 2.x network predicts v: the sign that ComfyUI goes by
(`comfy/supported_models.py`, SD20)."""
_TELLTALE: Final = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"


def is_ignored(name: str) -> bool:
    """Whether a tensor of a single file is known to be of no use for drawing."""
    return _IGNORED.fullmatch(name) is not None


def is_single_file_model(names: Iterable[str]) -> bool:
    """Whether these are the tensors of a U-Net and more, in one file of CompVis' names."""
    found = {name.partition(".")[0] for name in names}
    return "model" in found and bool(found & {"first_stage_model", "cond_stage_model"})


def read_single_config(path: Path) -> ModelConfig:
    """A single-file model in numbers, from its header alone; of SD 2.x, what it predicts may be a guess (`SingleFile`).

    Raises ModelNotFoundError, or ModelLoadError for a file that is not one of SD 1.x, SD 2.x or ours.
    """
    return SingleFile.open(path).config


@dataclass(frozen=True, slots=True)
class SingleFile:
    """A single-file model by its header: what it is, and under which name each of our parameters lies in it."""

    path: Path
    header: Header
    config: ModelConfig
    text_form: TextForm
    is_prediction_known: bool
    """False: the file does not say what its U-Net predicts, and `config` holds the likelier answer."""

    @classmethod
    def open(cls, path: Path) -> SingleFile:
        """Read the header. Raises as `read_single_config`."""
        return cls.of_header(open_header(path), path)

    @classmethod
    def of_header(cls, header: Header, path: Path) -> SingleFile:
        """The same of a header that has been read; `path` is for messages and for the guess of what is predicted."""
        shapes = {entry.name: entry.shape for entry in header.entries}
        config = _written_config(header, path)
        known = True
        if config is None:
            stated = stated_prediction_type(header)
            config = _published_config(shapes, stated or _likely_prediction_type(header, path), path)
            known = stated is not None
            if "ztsnr" in shapes and config.diffusion.prediction_type == "v_prediction":
                diffusion = replace(
                    config.diffusion, rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=0
                )
                defaults = replace(config.defaults, schedule=diffusion.usual_schedule)
                config = replace(config, diffusion=diffusion, defaults=defaults)
        return cls(path, header, config, find_text_form(shapes), known)

    def names(self) -> dict[Literal["unet", "vae", "text_encoder"], dict[str, str]]:
        """By part: our name -> the name in the file. An open_clip text encoder has open_clip's names on both sides."""
        unet, vae = unet_names(self.config.unet), vae_names(self.config.vae)
        return {
            "unet": {ours: UNET_PREFIX + theirs for ours, theirs in unet.items()},
            "vae": {ours: VAE_PREFIX + theirs for ours, theirs in vae.items()},
            "text_encoder": text_encoder_names(self.config.text_encoder, self.text_form),
        }

    def missing(self) -> list[str]:
        """The file's names of tensors that a network needs and that are not there."""
        found = {entry.name for entry in self.header.entries}
        return [theirs for part in self.names().values() for theirs in part.values() if theirs not in found]

    def unexpected(self) -> list[str]:
        """Tensors that no network takes and that are not known to be of no use (`is_ignored`)."""
        taken = {theirs for part in self.names().values() for theirs in part.values()}
        taken |= set(self._spare_layer())
        return [e.name for e in self.header.entries if e.name not in taken and not is_ignored(e.name)]

    def _spare_layer(self) -> list[str]:
        """OpenCLIP's last layer, which SD 2.x does not use and its original files hold."""
        prefix = OPEN_CLIP_PREFIXES.get(self.text_form)
        if prefix is None:
            return []
        layer = self.config.text_encoder.num_hidden_layers
        return [prefix + name.format(layer) for name in OPEN_CLIP_TEXT if ".resblocks." in name]


def find_text_form(names: Iterable[str]) -> TextForm:
    """How a single file names its text encoder."""
    for name in names:
        for form, prefix in OPEN_CLIP_PREFIXES.items():
            if name.startswith(prefix):
                return form
        if name.startswith(f"{CLIP_PREFIX}encoder."):
            return "bare clip"
    return "clip"


def text_encoder_names(config: TextEncoderConfig, form: TextForm) -> dict[str, str]:
    """Our name -> the file's; of open_clip's forms its own name, because there three tensors of ours are one."""
    prefix = OPEN_CLIP_PREFIXES.get(form)
    if prefix is not None:
        layers = range(config.num_hidden_layers)
        templates = [name for name, rule in OPEN_CLIP_TEXT.items() if rule.targets]
        names = {name.format(layer) for name in templates for layer in layers}
        return {name: prefix + name for name in sorted(names)}
    ours = text_names(config)
    return {name: CLIP_PREFIX + (name if form == "clip" else name.removeprefix("text_model.")) for name in ours}


def stated_prediction_type(header: Header) -> PredictionType | None:
    """What a published single file says that it predicts, or None where only its numbers tell (SD 2.x).

    Sources: `modelspec.prediction_type` and `modelspec.architecture` of the model metadata standard of Stability AI;
    an empty tensor `v_pred`, as trainers mark such models; SD 1.x and every inpainting model were published as eps.
    """
    stated = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
    said = stated.get(header.metadata.get("modelspec.prediction_type", "").lower())
    if said is not None:
        return cast(PredictionType, said)
    shapes = {entry.name: entry.shape for entry in header.entries}
    if "v_pred" in shapes or "-768-v" in header.metadata.get("modelspec.architecture", ""):
        return "v_prediction"
    is_inpainting = shapes.get(f"{UNET_PREFIX}input_blocks.0.0.weight", (0, 0))[1] == 9
    return "epsilon" if is_inpainting or find_text_form(shapes) not in OPEN_CLIP_PREFIXES else None


def written_metadata(config: ModelConfig, title: str) -> dict[str, str]:
    """What we say of a model in a single file's header: in the standard's words (`modelspec.*`) and in our own."""
    family = family_of(config)
    v = config.diffusion.prediction_type == "v_prediction"
    architecture = {
        "SD 1.x": "stable-diffusion-v1",
        "SD 2.x": "stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512",
    }.get(family, "latentgen")
    names = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
    files = {
        "unet": write_unet(config.unet),
        "vae": write_vae(config.vae),
        "text_encoder": write_text_encoder(config.text_encoder, "float32"),
        "scheduler": write_scheduler(config.diffusion),
        "index": write_model_index(config.defaults),
    }
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture + ("-inpainting" if config.unet.in_channels == 9 else ""),
        "modelspec.implementation": "latentgen" if family == "latentgen" else "CompVis/stable-diffusion",
        "modelspec.title": title,
        "modelspec.resolution": f"{config.defaults.width_px}x{config.defaults.height_px}",
        "modelspec.prediction_type": names[config.diffusion.prediction_type],
        CONFIG_KEY: json.dumps(files, separators=(",", ":")),
    }


Family = Literal["SD 1.x", "SD 2.x", "latentgen"]


def family_of(config: ModelConfig) -> Family:
    """Whose architecture a model has: that of the published ones, or one of our own."""
    published: dict[Family, ModelConfig] = {"SD 1.x": SD15, "SD 2.x": SD21_BASE}
    for family, preset in published.items():
        unet = replace(config.unet, in_channels=preset.unet.in_channels, sample_size=preset.unet.sample_size)
        if unet == preset.unet:
            return family
    return "latentgen"


def find_vae(header: Header, path: Path) -> tuple[VAEConfig, dict[str, str]]:
    """The autoencoder in a whole model or in a file of its own: its config, and our names -> the file's.

    A file of its own has CompVis' names, with or without the prefix, or those of diffusers.
    Raises ModelLoadError if it holds no autoencoder of Stable Diffusion 1.x, 2.x or ours.
    """
    shapes = {entry.name: entry.shape for entry in header.entries}
    prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in shapes) else ""
    written = _written_object(header, path, "vae")
    if written is not None:
        config = read_vae(path, written)
    elif shapes.get(f"{prefix}decoder.conv_in.weight", ())[:2] == (
        SD_VAE.block_out_channels[-1],
        SD_VAE.latent_channels,
    ):
        config = SD_VAE
    else:
        raise ModelLoadError(
            f"{path} holds no autoencoder of Stable Diffusion 1.x or 2.x",
            hint=f"see: latentgen info {quote(str(path))}",
        )
    names = vae_names(config)
    if any(name.startswith("decoder.up_blocks.") for name in shapes):
        return config, {ours: ours for ours in names}
    return config, {ours: prefix + theirs for ours, theirs in names.items()}


def _written_object(header: Header, path: Path, key: str) -> dict[str, Any] | None:
    """One object of what we wrote under CONFIG_KEY; None if we did not write the file. Raises ModelLoadError."""
    text = header.metadata.get(CONFIG_KEY)
    if text is None:
        return None
    try:
        content = json.loads(text)[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path}: {CONFIG_KEY} in its header holds no {key}", hint="convert the model again")
    return cast("dict[str, Any]", content)


def _written_config(header: Header, path: Path) -> ModelConfig | None:
    if CONFIG_KEY not in header.metadata:
        return None
    objects = {key: _written_object(header, path, key) for key in ("unet", "vae", "text_encoder", "scheduler", "index")}
    unet, vae = read_unet(path, objects["unet"]), read_vae(path, objects["vae"])
    diffusion = read_scheduler(path, objects["scheduler"])
    try:
        return ModelConfig(
            unet=unet,
            vae=vae,
            text_encoder=read_text_encoder(path, objects["text_encoder"]),
            diffusion=diffusion,
            defaults=read_defaults(path, unet.sample_size * vae.downscale, diffusion, objects["index"]),
        )
    except ConfigError as error:
        raise ModelLoadError(f"{path}: {error.message}", hint="convert the model again") from None


def _published_config(
    shapes: Mapping[str, tuple[int, ...]], prediction_type: PredictionType, path: Path
) -> ModelConfig:
    """SD 1.x or 2.x by the width of the context that the U-Net attends to."""
    first = shapes.get(f"{UNET_PREFIX}input_blocks.0.0.weight", ())
    key = f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    width = shapes.get(key, (0, 0))[-1]
    if len(first) != 4 or width not in (768, 1024):
        raise ModelLoadError(
            f"{path} is no single-file model of Stable Diffusion 1.x or 2.x",
            hint=f"see: latentgen info {quote(str(path))}",
        )
    channels = first[1]
    if channels not in (4, 9):
        kinds = {5: " (a depth model)", 7: " (an upscaler)", 8: " (an editing model)"}
        raise ModelLoadError(
            f"{path}: its U-Net takes {channels} channels{kinds.get(channels, '')}; only 4 and 9 (inpainting) are used"
        )
    v = prediction_type == "v_prediction"
    preset = SD15 if width == 768 else SD21_V if v else SD21_BASE
    return replace(
        preset,
        unet=replace(preset.unet, in_channels=channels),
        diffusion=replace(preset.diffusion, prediction_type=prediction_type),
    )


def _likely_prediction_type(header: Header, path: Path) -> PredictionType:
    """Of SD 2.x, told by the spread of one bias; epsilon if that is not there."""
    entry = next((each for each in header.entries if each.name == _TELLTALE), None)
    if entry is None:
        return "epsilon"
    numbers = _read_numbers(entry, path)
    if not numbers or not all(map(math.isfinite, numbers)):  # loading will say so
        return "epsilon"
    return "v_prediction" if statistics.pstdev(numbers) > _SPREAD_OF_V else "epsilon"


def _read_numbers(entry: TensorEntry, path: Path) -> list[float]:
    """A small tensor of fractions. Raises ModelLoadError if the file became shorter, or for whole numbers."""
    with path.open("rb") as file:
        file.seek(entry.begin)
        data = file.read(entry.end - entry.begin)
    if len(data) < entry.end - entry.begin:
        raise ModelLoadError(f"{path} became shorter while it was read")
    if entry.dtype == "BF16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    code = {"F32": "f", "BF16": "f", "F16": "e", "F64": "d"}.get(entry.dtype)
    if code is None:
        raise ModelLoadError(f"{path}: tensor {entry.name} holds whole numbers ({entry.dtype})")
    return [number for (number,) in struct.iter_unpack(f"<{code}", data)]
