"""What `--text-encoder` may name: a folder, a model of the Hugging Face hub, one of open_clip's registry. No torch.

A name is a path if something is there, if it begins like one (`.`, `/`, `~`), if its first folder exists, or if it has
not exactly one `/`. Only then `ARCHITECTURE/TAG` of open_clip and `OWNER/NAME` of the hub are considered, so a mistyped
path is never looked up elsewhere. The hub's local cache is read; the network is used if the caller says so.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from latentgen.checkpoints.config_file import ConfigFile
from latentgen.checkpoints.diffusers_config import CLIP_VOCAB_SIZE, read_text_encoder
from latentgen.checkpoints.layout import CONFIG, TOKENIZER_FILES, WEIGHTS, find_weights, part_folder
from latentgen.config import TextEncoderConfig
from latentgen.errors import InputError, ModelLoadError, ModelNotFoundError

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
OPEN_CLIP_WEIGHTS: Final = "open_clip_model.safetensors"
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class PublishedFolder:
    """A text encoder as transformers saves it: a folder of its own, of a whole CLIP, or of a diffusers model."""

    folder: Path
    config: TextEncoderConfig


@dataclass(frozen=True, slots=True)
class OpenClipTower:
    """open_clip's text tower in a safetensors file of a whole CLIP, to be used without its last layer, as in SD 2.x."""

    weights: Path
    config: TextEncoderConfig
    """Of the network without the last layer."""


FoundTextEncoder = PublishedFolder | OpenClipTower


def find_text_encoder(name: str, *, download: bool) -> FoundTextEncoder:
    """Where a text encoder lies on this machine, and its shape; `download`: fetch it from the hub if it is not here.

    Raises ModelNotFoundError if it is not to be had, ModelLoadError if it is no CLIP text encoder that we can be.
    """
    path = Path(os.path.expanduser(name))
    if _is_path(name, path):
        if not os.path.exists(path):
            hint = "the hub's names are OWNER/NAME, open_clip's ARCHITECTURE/TAG"
            raise ModelNotFoundError(f"no such path: {name}", hint=hint)
        return _in_folder(path)
    architecture, _, tag = name.partition("/")
    shape = _open_clip_folder() / "model_configs" / f"{architecture}.json"
    if shape.is_file():
        return _registered(name, architecture, tag, shape, download=download)
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"--text-encoder {name} is neither a path nor a name of the hub or of open_clip")
    return _in_folder(_hub_folder(name, download=download))


def _is_path(name: str, path: Path) -> bool:
    looks_like_one = name.startswith((".", "/", "~")) or name.count("/") != 1
    return looks_like_one or os.path.exists(path) or os.path.exists(name.partition("/")[0])


def _in_folder(folder: Path) -> FoundTextEncoder:
    own = part_folder(folder, "text_encoder")
    if (own / OPEN_CLIP_CONFIG).exists() and not (own / CONFIG).exists():
        model = ConfigFile(own / OPEN_CLIP_CONFIG).section("model_cfg")
        config = _read_tower(model, quick_gelu=model.flag("quick_gelu", False))
        if not (own / OPEN_CLIP_WEIGHTS).exists():
            raise ModelLoadError(f"{own / OPEN_CLIP_WEIGHTS} is missing", hint="download the folder again")
        return OpenClipTower(own / OPEN_CLIP_WEIGHTS, config)
    config = read_text_encoder(own / CONFIG)
    find_weights(own, "text_encoder")
    tokenizer = part_folder(folder, "tokenizer")
    if not any((tokenizer / name).exists() for name in ("vocab.json", "tokenizer.json")):
        raise ModelLoadError(f"{tokenizer} holds no tokenizer", hint="vocab.json and merges.txt go with every CLIP")
    return PublishedFolder(folder, config)


# open_clip


def _open_clip_folder() -> Path:
    """Of the installed package, without importing it: that takes seconds."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None, "open_clip is a dependency"
    assert spec.submodule_search_locations, "open_clip is a package"
    return Path(spec.submodule_search_locations[0])


def _registered(name: str, architecture: str, tag: str, shape: Path, *, download: bool) -> OpenClipTower:
    """An entry of open_clip's list of pretrained models; importing that list imports torch."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    entry = cast("dict[str, Any]", get_pretrained_cfg(architecture, tag))
    if not entry:
        tags = ", ".join(list_pretrained_tags_by_model(architecture)) or "none"
        raise ModelNotFoundError(f"open_clip has no {name}", hint=f"tags of {architecture}: {tags}")
    # What the weights were trained with counts, not what the architecture's file says: open_clip itself only warns.
    config = _read_tower(ConfigFile(shape), quick_gelu=bool(entry.get("quick_gelu")))
    repository, _, file = str(entry.get("hf_hub") or "").rpartition("/")
    if not repository:
        raise ModelNotFoundError(f"open_clip's {name} is not on the hub", hint="give a folder with its weights")
    weights = _hub_file(repository, f"{file.rpartition('.')[0]}.safetensors" if file else OPEN_CLIP_WEIGHTS, download)
    if weights is None:
        raise _not_here(name, download)
    return OpenClipTower(weights, config)


def _read_tower(model: ConfigFile, *, quick_gelu: bool) -> TextEncoderConfig:
    """The text half of an open_clip model's config, less the last layer. Raises ModelLoadError for other towers."""
    tower = model.section("text_cfg")
    tower.must_be(_OPEN_CLIP_FIXED)
    width = tower.integer("width", 512)
    ratio = tower.number("mlp_ratio", 4.0)
    config = tower.build(
        TextEncoderConfig,
        vocab_size=CLIP_VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=int(width * ratio),
        num_hidden_layers=tower.integer("layers", 12, minimum=2) - 1,
        num_attention_heads=tower.integer("heads", 8),
        hidden_act="quick_gelu" if quick_gelu else "gelu",
        pad_token_id=0,
        projection_dim=model.integer("embed_dim", 512),
    )
    tower.close(_OPEN_CLIP_IRRELEVANT)
    return config


_OPEN_CLIP_FIXED: Final[dict[str, Any]] = {
    "act_kwargs": None,
    "context_length": 77,
    "embed_cls": False,
    "final_ln_after_pool": False,
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "ls_init_value": None,
    "no_causal_mask": False,
    "norm_kwargs": None,
    "tokenizer_kwargs": None,
    "vocab_size": CLIP_VOCAB_SIZE,
}
_OPEN_CLIP_IRRELEVANT: Final = frozenset(
    # How the states become one vector, which diffusion does not use
    {"eos_id", "output_tokens", "pad_id", "pool_type", "proj_bias", "proj_type"}
)


# The hub


def _hub_folder(name: str, *, download: bool) -> Path:
    """The snapshot of a hub model in the local cache, with what there is of text encoder and tokenizer."""
    config, files = _hub_file(name, CONFIG, download), (WEIGHTS["text_encoder"], *TOKENIZER_FILES)
    if config is None:
        config = _hub_file(name, OPEN_CLIP_CONFIG, download)
        files = (OPEN_CLIP_WEIGHTS,)
    if config is not None:
        folder = config.parent
    else:
        config = _hub_file(name, f"text_encoder/{CONFIG}", download)
        if config is None:
            raise _not_here(name, download)
        folder = config.parent.parent
        files = (f"text_encoder/{WEIGHTS['text_encoder']}", *(f"tokenizer/{file}" for file in TOKENIZER_FILES))
    for file in files:
        _hub_file(name, file, download)
    return folder


def _hub_file(repository: str, file: str, download: bool) -> Path | None:
    """A file of a hub model in the local cache, fetched if it may be; None if it is not to be had.

    Raises ModelNotFoundError for a model that the hub does not give out.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, local_files_only=not download))
    except EntryNotFoundError:  # not in the cache, or not in the repository
        return None
    except GatedRepoError:
        hint = "accept them on its page, then log in: hf auth login"
        raise ModelNotFoundError(f"{repository} on the hub asks for its terms to be accepted", hint=hint) from None
    except RepositoryNotFoundError:
        raise ModelNotFoundError(f"the hub has no {repository}, or does not show it to you") from None
    except (HfHubHTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelNotFoundError(f"{repository} cannot be fetched from the hub: {reason}") from None


def _not_here(name: str, download: bool) -> ModelNotFoundError:
    from huggingface_hub import constants

    what = f"the text encoder {name} is no folder, and its files are not in the hub's local cache"
    if not download:
        return ModelNotFoundError(what, hint="--download fetches them")
    if constants.HF_HUB_OFFLINE:
        return ModelNotFoundError(f"{what}; HF_HUB_OFFLINE is set", hint="unset it, or give a folder")
    return ModelNotFoundError(
        f"the hub has no safetensors of {name}, or cannot be reached", hint="give a folder instead"
    )
