"""Any published CLIP as our text encoder: files that transformers and open_clip wrote, in folders and in a hub cache.

No network: the hub is a cache folder made here, or a server on this machine. All weights are tiny and random.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from latentgen.checkpoints import text_encoder_names
from latentgen.checkpoints.folder import ModelBundle, save_model
from latentgen.checkpoints.text_encoder_names import OpenClipTower, PublishedFolder, find_text_encoder
from latentgen.checkpoints.text_encoders import load_found
from latentgen.config import ModelConfig
from latentgen.errors import InputError, LatentgenError, ModelLoadError, ModelNotFoundError
from latentgen.models.tokenizer import Tokenizer
from tests.tiny import TINY_MODEL, TINY_UNET, randomize, tiny_unet, tiny_vae

PROMPTS = ["A red lighthouse, at sunset!", "", "two boats"]
TEXT = {
    **{"vocab_size": 600, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3},
    **{"num_attention_heads": 2, "projection_dim": 16, "bos_token_id": 598, "eos_token_id": 599},
}
VISION = {
    **{"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 32, "patch_size": 16},
}
# float32 on both sides, another order of additions in attention
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def of_transformers(kind: str, folder: Path) -> torch.nn.Module:
    """A CLIP of transformers, saved by itself with a tokenizer beside it."""
    torch.manual_seed(3)
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))
    else:
        classes = {"text": CLIPTextModel, "text-with-projection": CLIPTextModelWithProjection}
        model = classes[kind](CLIPTextConfig(**TEXT, hidden_act="gelu"))
    randomize(model).eval()
    model.save_pretrained(folder)
    Tokenizer.published(86).save(folder)
    return model


def states_of(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return getattr(model, "text_model", model)(ids).last_hidden_state


def assert_same_text_encoder(name: str | Path, model: torch.nn.Module) -> None:
    encoder, tokenizer = load_found(find_text_encoder(str(name), download=False))
    ids = tokenizer.encode(PROMPTS)
    torch.testing.assert_close(encoder(ids), states_of(model, ids), **TOLERANCE)


# transformers


@pytest.mark.parametrize("kind", ["clip", "text", "text-with-projection"])
@torch.no_grad()
def test_folder_of_transformers(kind: str, tmp_path: Path) -> None:
    model = of_transformers(kind, tmp_path / "clip")
    assert_same_text_encoder(tmp_path / "clip", model)
    found = find_text_encoder(str(tmp_path / "clip"), download=False)
    assert found.config.hidden_act == ("quick_gelu" if kind == "clip" else "gelu")


@torch.no_grad()
def test_folder_from_before_transformers_4_30(tmp_path: Path) -> None:
    """OpenAI's own folders: ids that the vocabulary never had, settings of text generation, counted positions."""
    model = of_transformers("clip", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] = {
        **config["text_config"],
        **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "top_k": 50, "num_beams": 1, "temperature": 1.0},
        **{"id2label": {"0": "LABEL_0"}, "return_dict": True, "add_cross_attention": False, "prefix": None},
        "num_attention_heads": 8,  # what text_config_dict says is what counts
    }
    config["text_config_dict"] = {"num_attention_heads": 2, "hidden_size": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_text_encoder(tmp_path, model)
    config = find_text_encoder(str(tmp_path), download=False).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (598, 599, 599)


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    of_transformers("text", tmp_path / "clip")
    for missing, says in [
        ("model.safetensors", "model.safetensors is missing"),
        ("vocab.json", "holds no tokenizer"),
        ("config.json", "config.json is missing"),
    ]:
        broken = tmp_path / missing
        shutil.copytree(tmp_path / "clip", broken)
        (broken / missing).unlink()
        with pytest.raises(ModelLoadError, match=says):
            find_text_encoder(str(broken), download=False)
    config = tmp_path / "clip/config.json"
    config.write_text(config.read_text().replace("clip_text_model", "t5"))
    with pytest.raises(ModelLoadError, match="model_type is 't5', but only clip_text_model, clip can be used"):
        find_text_encoder(str(tmp_path / "clip"), download=False)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    of_transformers("text", tmp_path)
    Tokenizer.published(200).save(tmp_path)
    with pytest.raises(ModelLoadError, match="77 tokens out of 600, but the tokenizer gives 77 out of 714"):
        load_found(find_text_encoder(str(tmp_path), download=False))


# open_clip


def of_open_clip(file: Path, *, quick_gelu: bool) -> CLIP:
    torch.manual_seed(4)
    model = CLIP(
        embed_dim=16,
        vision_cfg=CLIPVisionCfg(layers=1, width=32, head_width=8, image_size=32, patch_size=16),
        text_cfg=CLIPTextCfg(width=32, heads=4, layers=3),
        quick_gelu=quick_gelu,
    )
    randomize(model).eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file)
    return model


MODEL_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
}


def penultimate_of(model: CLIP, ids: Tensor) -> Tensor:
    """The states before the last block, normed: what SD 2.x conditions on (`FrozenOpenCLIPEmbedder`, "penultimate")."""
    states: list[Tensor] = []
    hook = model.transformer.resblocks[-2].register_forward_hook(lambda module, args, output: states.append(output))
    model.encode_text(ids)
    hook.remove()
    return model.ln_final(states[0])


@pytest.mark.parametrize("quick_gelu", [False, True])
@torch.no_grad()
def test_folder_of_open_clip(quick_gelu: bool, tmp_path: Path) -> None:
    model = of_open_clip(tmp_path / "open_clip_model.safetensors", quick_gelu=quick_gelu)
    config = {"model_cfg": MODEL_CONFIG | ({"quick_gelu": True} if quick_gelu else {}), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    encoder, tokenizer = load_found(find_text_encoder(str(tmp_path), download=False))
    ids = open_clip.get_tokenizer("ViT-H-14")(PROMPTS)
    assert torch.equal(tokenizer.encode(PROMPTS), ids), "padded with 0, as open_clip pads"
    torch.testing.assert_close(encoder(ids), penultimate_of(model, ids), **TOLERANCE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"no_causal_mask": True}, "no_causal_mask is True, but only False is supported"),
        ({"hf_model_name": "xlm-roberta-base"}, "hf_model_name is 'xlm-roberta-base'"),
        ({"context_length": 64}, "context_length is 64, but only 77 is supported"),
        ({"qk_norm": True}, "unknown key qk_norm = True"),
        ({"layers": 2}, "text_model.encoder.layers.2"),  # fewer than the file holds
    ],
)
def test_towers_of_open_clip_that_we_cannot_be(change: dict[str, object], says: str, tmp_path: Path) -> None:
    of_open_clip(tmp_path / "open_clip_model.safetensors", quick_gelu=False)
    config = {"model_cfg": {**MODEL_CONFIG, "text_cfg": {**MODEL_CONFIG["text_cfg"], **change}}}  # pyright: ignore
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=says):
        load_found(find_text_encoder(str(tmp_path), download=False))


@torch.no_grad()
def test_an_open_clip_encoder_in_a_model_that_diffusers_opens(tmp_path: Path) -> None:
    """As SD 2.x is published: without the last layer, with a tokenizer that pads with `!`.

    In transformers the padding token's name is that token even inside a prompt; so none with a `!` here.
    """
    model = of_open_clip(tmp_path / "clip/open_clip_model.safetensors", quick_gelu=False)
    (tmp_path / "clip/open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CONFIG}))
    encoder, tokenizer = load_found(find_text_encoder(str(tmp_path / "clip"), download=False))
    unet = replace(TINY_UNET, cross_attention_dim=32)
    config = ModelConfig(unet, TINY_MODEL.vae, encoder.config, TINY_MODEL.diffusion, TINY_MODEL.defaults)
    save_model(ModelBundle(tiny_unet(unet), tiny_vae(), encoder, tokenizer, config), tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    prompts = [prompt.rstrip("!") for prompt in PROMPTS]
    theirs = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ids = open_clip.get_tokenizer("ViT-H-14")(prompts)
    assert torch.equal(theirs, ids)
    torch.testing.assert_close(pipeline.text_encoder(ids)[0], penultimate_of(model, ids), **TOLERANCE)


# The hub's local cache, and names


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`hub("owner/name")`: the snapshot folder of a cached model, as huggingface_hub lays it out, to be filled."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)

    def snapshot(name: str) -> Path:
        place = cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        commit = hashlib.sha1(name.encode()).hexdigest()
        (place / "refs/main").write_text(commit)
        (place / "snapshots" / commit).mkdir(parents=True)
        return place / "snapshots" / commit

    return snapshot


@torch.no_grad()
def test_hub_ids_from_the_cache(hub: Callable[[str], Path]) -> None:
    model = of_transformers("clip", hub("openai/clip-vit-large-patch14"))
    assert_same_text_encoder("openai/clip-vit-large-patch14", model)
    snapshot = hub("somebody/a-diffusers-model")
    model = of_transformers("text", snapshot / "text_encoder")
    Tokenizer.published(86).save(snapshot / "tokenizer")
    assert_same_text_encoder("somebody/a-diffusers-model", model)
    snapshot = hub("timm/open-clip-only")
    of_open_clip(snapshot / "open_clip_model.safetensors", quick_gelu=False)
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CONFIG}))
    assert isinstance(find_text_encoder("timm/open-clip-only", download=False), OpenClipTower)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture of open_clip's, ViT-Tiny-14, with the tags laion_tiny and openai."""
    shapes = tmp_path / "open_clip/model_configs"
    shapes.mkdir(parents=True)
    (shapes / "ViT-Tiny-14.json").write_text(json.dumps(MODEL_CONFIG))
    monkeypatch.setattr(text_encoder_names, "_open_clip_folder", lambda: tmp_path / "open_clip")
    tags = {
        "laion_tiny": {"url": "", "hf_hub": "laion/tiny/"},
        "openai": {"url": "", "hf_hub": "timm/tiny.openai/", "quick_gelu": True},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-Tiny-14", tags)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("name", "repository", "quick_gelu"),
    [("ViT-Tiny-14/laion_tiny", "laion/tiny", False), ("ViT-Tiny-14/openai", "timm/tiny.openai", True)],
)
@torch.no_grad()
def test_open_clip_names_from_the_cache(
    name: str, repository: str, quick_gelu: bool, hub: Callable[[str], Path]
) -> None:
    """OpenAI's weights want quick_gelu, which the architecture's own file does not say."""
    model = of_open_clip(hub(repository) / "open_clip_model.safetensors", quick_gelu=quick_gelu)
    encoder, tokenizer = load_found(find_text_encoder(name, download=False))
    ids = tokenizer.encode(PROMPTS)
    torch.testing.assert_close(encoder(ids), penultimate_of(model, ids), **TOLERANCE)


def test_the_real_registry() -> None:
    """SD 2.x's text encoder by open_clip's name: the shape is that of its published folder; the files are not here."""
    from latentgen.presets import SD21_BASE

    shape = text_encoder_names._open_clip_folder() / "model_configs/ViT-H-14.json"
    config = text_encoder_names._read_tower(text_encoder_names.ConfigFile(shape), quick_gelu=False)
    assert replace(config, projection_dim=SD21_BASE.text_encoder.projection_dim) == SD21_BASE.text_encoder
    with pytest.raises(ModelNotFoundError, match=r"ViT-H-14/laion2b_s32b_b79k .* not in the hub's local cache"):
        find_text_encoder("ViT-H-14/laion2b_s32b_b79k", download=False)
    with pytest.raises(ModelNotFoundError, match="open_clip has no ViT-H-14/laion9b"):
        find_text_encoder("ViT-H-14/laion9b", download=False)


@pytest.mark.parametrize("name", ["clip", "./openai/clip", "/nowhere/clip", "runs/clip/model", "openai/clip", "~/x/y"])
def test_a_mistyped_path_is_never_a_hub_id(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Callable[[str], Path]
) -> None:
    (tmp_path / "openai").mkdir()  # the first folder of the fifth exists: it means a path
    monkeypatch.setattr(text_encoder_names, "_hub_folder", lambda *args, **kwargs: pytest.fail("asked the hub"))
    with pytest.raises(ModelNotFoundError, match=f"no such path: {name}"):
        find_text_encoder(name, download=True)


@pytest.mark.parametrize(
    ("name", "download", "says", "kind"),
    [
        ("openai/none", False, "not in the hub's local cache.*--download fetches them", ModelNotFoundError),
        ("openai/none", True, "not in the hub's local cache; HF_HUB_OFFLINE is set", ModelNotFoundError),
        ("what ever/x", False, "neither a path nor a name", InputError),
    ],
)
def test_names_that_are_not_here(
    name: str, download: bool, says: str, kind: type[LatentgenError], hub: Callable[[str], Path]
) -> None:
    with pytest.raises(kind, match=says) as raised:
        find_text_encoder(name, download=download)
    assert "\n" not in str(raised.value)


# A hub on this machine


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: object) -> Iterator[Path]:
    """A folder whose OWNER/NAME/FILE is served as by the hub; the cache is empty, and going online allowed."""
    files = tmp_path / "served"
    files.mkdir()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            file = files / self.path.split("?")[0].lstrip("/").replace("/resolve/main/", "/")
            exists = file.is_file()
            content = file.read_bytes() if exists else b""
            self.send_response(200 if exists else 404)
            if not exists:
                known = (files / Path(*file.relative_to(files).parts[:2])).is_dir()
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{httpd.server_port}"
        constants = huggingface_hub.constants
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield files
        httpd.shutdown()


@torch.no_grad()
def test_downloaded_only_if_asked_and_only_once(server: Path) -> None:
    model = of_transformers("clip", server / "openai/tiny")
    with pytest.raises(ModelNotFoundError, match="--download fetches them"):
        find_text_encoder("openai/tiny", download=False)
    assert isinstance(find_text_encoder("openai/tiny", download=True), PublishedFolder)
    shutil.rmtree(server / "openai")
    assert_same_text_encoder("openai/tiny", model)
    with pytest.raises(ModelNotFoundError, match="the hub has no openai/none, or does not show it to you"):
        find_text_encoder("openai/none", download=True)
