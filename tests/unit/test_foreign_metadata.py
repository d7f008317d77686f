"""Pictures of other tools: texts of the shape that each of them writes."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from latentgen.errors import InputError
from latentgen.images.a1111 import parse_parameters
from latentgen.images.files import PictureText, encode_picture, read_picture_text
from latentgen.images.foreign import (
    ForeignMetadata,
    ForeignSettings,
    NamedFiles,
    NamedLoRA,
    StartingPicture,
    as_number,
    as_whole,
    parse_object,
    plain_embeddings,
    read_foreign,
)
from latentgen.samplers.registry import resolve_sampler, resolve_schedule


def said(text: PictureText) -> ForeignMetadata:
    found = read_foreign(text)
    assert found is not None
    return found


def a1111(text: str) -> ForeignMetadata:
    return said(PictureText(text))


def not_repeatable(found: ForeignMetadata) -> str:
    return "\n".join([*found.named.missing(), *found.could_not])


# A1111

HIRES = (
    "masterpiece, (a cat:1.2) <lora:ink_v2:0.8>, Steps: 3 of them\n"
    "Steps: four, on a staircase\n"
    "Negative prompt: lowres, bad hands,\n"
    "Negative prompt: twice\n"
    "Steps: 25, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 5.5, Seed: 3012093415, Size: 512x768, "
    "Model hash: 45dee52b12, Model: some, model_v1, VAE hash: 735e4c3a44, VAE: vae-ft-mse.safetensors, "
    "Denoising strength: 0.45, Clip skip: 2, ENSD: 31337, RNG: CPU, Hires upscale: 1.5, Hires steps: 12, "
    'Hires upscaler: R-ESRGAN 4x+, Lora hashes: "ink_v2: 1f2e3d4c5b6a, other: 00", '
    'ControlNet 0: "Module: canny, Model: control_v11p [d14c016b], Weight: 1.0", Version: v1.9.4'
)


def test_a_second_pass_weights_and_odd_prompts() -> None:
    found = a1111(HIRES.replace("some, model_v1", "some_model"))
    assert found.tool == "AUTOMATIC1111"
    assert found.prompt == "masterpiece, (a cat:1.2) , Steps: 3 of them\nSteps: four, on a staircase"
    assert found.negative_prompt == "lowres, bad hands,\nNegative prompt: twice"
    assert found.settings == ForeignSettings(
        seed=3012093415,
        steps=25,
        guidance=5.5,
        sampler="DPM++ 2M SDE",
        schedule="Karras",
        width_px=512,
        height_px=768,
        clip_skip=2,
        hires_scale=1.5,
        hires_strength=0.45,
        rng="cpu",
    )
    assert found.model == "some_model"
    assert found.also["Lora hashes"] == "ink_v2: 1f2e3d4c5b6a, other: 00"
    assert found.named == NamedFiles(loras=(NamedLoRA("ink_v2", 0.8),), vae="vae-ft-mse.safetensors")
    remarks = not_repeatable(found)
    for part in ("LoRA ink_v2 (0.8)", "Hires upscaler R-ESRGAN 4x+", "ENSD 31337", "ControlNet 0 Module: canny, Model"):
        assert part in remarks
    assert "starting noise" not in remarks


@pytest.mark.parametrize(
    ("fields", "sampler", "schedule"),
    [
        ("Sampler: DPM++ 2M Karras", "DPM++ 2M", "Karras"),
        ("Sampler: Euler a", "Euler a", "uniform"),
        ("Sampler: DDIM", "DDIM", "leading"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "Euler", "SGM Uniform"),
        ("Sampler: DPM++ SDE, Schedule type: Automatic", "DPM++ SDE", "Automatic"),
        ("Sampler: UniPC, Schedule type: Align Your Steps", "UniPC", "Align Your Steps"),
    ],
)
def test_a1111s_samplers_and_schedules_are_known_here(fields: str, sampler: str, schedule: str) -> None:
    found = a1111(f"x\nSteps: 20, {fields}, CFG scale: 7, Seed: 1, Size: 512x512").settings
    assert (found.sampler, found.schedule) == (sampler, schedule)
    resolve_sampler(sampler)
    if schedule != "Automatic":
        resolve_schedule(schedule)


def test_pictures_from_pictures_and_noise_from_a_gpu_are_told() -> None:
    found = a1111("x\nSteps: 20, Sampler: Euler, CFG scale: 7, Denoising strength: 0.75, Mask blur: 3")
    assert found.named.start == StartingPicture(strength=0.75, is_masked=True, mask_blur_px=3)
    assert found.named.missing() == [
        "the picture it starts from (0.75): it is not in the file; give it with --init-image",
        "the mask: it is not in the file; give it with --mask",
    ]
    assert found.named.missing(init_image=True, mask=True) == []
    assert any(remark.startswith("starting noise: GPU") for remark in found.could_not)


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ("Denoising strength: 0.5", StartingPicture(strength=0.5, is_masked=False)),
        ("Denoising strength: 7, Mask blur: -1", StartingPicture(is_masked=True)),
        ("Denoising strength: 1, Mask mode: Inpaint not masked",
         StartingPicture(strength=1, is_masked=True, invert_mask=True)),
        ("Denoising strength: 0.5, Hires upscale: 2", None),
    ],
)  # fmt: skip
def test_how_a1111_used_a_picture(fields: str, start: StartingPicture | None) -> None:
    assert a1111(f"x\nSteps: 20, Sampler: Euler, Seed: 1, {fields}").named.start == start


def test_add_ons_of_a1111_are_named() -> None:
    tags = "<lora:sub/ink.safetensors:0.8> <lora:fog> <lyco:pen:0.7:0.2> <hypernet:h:1>"
    found = a1111(
        f"easy-neg {tags}\nSteps: 20, Sampler: Euler, Seed: 1, RNG: CPU, VAE: mse.pt, "
        'TI hashes: "easy-neg: c74b4e810b03, bad hands: aa7651be154c"'
    )
    loras = (NamedLoRA("sub/ink.safetensors", 0.8), NamedLoRA("fog"), NamedLoRA("pen"))
    assert found.named == NamedFiles(loras=loras, embeddings=("easy-neg", "bad hands"), vae="mse.pt")
    assert found.named.scales == {"ink": 0.8, "fog": 1.0, "pen": 1.0}
    assert found.prompt == "easy-neg"
    assert found.could_not == (
        "LoRA pen: its weight 0.7:0.2 is not one number; 1 is taken",
        "hypernetwork h: not supported",
    )
    given = found.named.missing(loras=["ink", "fog", "pen"], embeddings=["EASY-NEG", "bad hands"], vae=True)
    assert given == []


@pytest.mark.parametrize(("said", "rng", "told"), [("", "nv", 1), (", RNG: GPU", "nv", 1), (", RNG: NV", "nv", 0),
                                                   (", RNG: CPU", "cpu", 0)])  # fmt: skip
def test_whose_noise_it_was(said: str, rng: str, told: int) -> None:
    found = a1111(f"x\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512{said}")
    assert found.settings.rng == rng
    assert sum(remark.startswith("starting noise") for remark in found.could_not) == told


@pytest.mark.parametrize(
    ("version", "tool"),
    [
        ("Version: f2.0.1v1.10.1-previous-656", "Forge"),
        ("App: SD.Next, Version: 4a6cd4b", "SD.Next"),
        ("Version: ComfyUI", "ComfyUI"),
        ("Version: latentgen 0.1.0", "latentgen"),
        ("Version: neo", "a tool that writes A1111 parameters"),
    ],
)
def test_the_family_is_told_apart(version: str, tool: str) -> None:
    assert a1111(f"x\nSteps: 20, Sampler: Euler, Seed: 1, {version}").tool == tool


def test_what_sites_put_behind_the_fields_does_no_harm() -> None:
    text = (
        "a cat\nSteps: 20, Sampler: Euler, Seed: 1, Civitai resources: "
        '[{"type":"checkpoint","modelVersionId":1,"modelName":"x, y"}], Civitai metadata: {}\n'
        "Template: a {cat|dog}\nNegative Template: bad"
    )
    parameters = parse_parameters(text)
    assert parameters.prompt == "a cat"
    assert parameters.fields["Civitai resources"] == '[{"type":"checkpoint","modelVersionId":1,"modelName":"x, y"}]'
    assert parameters.fields["Civitai metadata"] == "{}"
    assert parameters.fields["Template"] == "a {cat|dog}"


@pytest.mark.parametrize("size", ["1024x1024", "1024x0", "0x1024"])
def test_a_size_the_second_pass_ends_in_is_a_scale(size: str) -> None:
    found = a1111(f"x\nSteps: 20, Size: 512x512, Denoising strength: 0.5, Hires resize: {size}")
    assert (found.settings.hires_scale, found.settings.hires_strength, found.named.start) == (2, 0.5, None)


def test_words_are_not_settings() -> None:
    assert parse_parameters("how to bake\nSteps: two, maybe").fields == {}
    assert read_foreign(PictureText("just words, with: a colon")) is None


# ComfyUI


def graph(**changes: dict[str, Any] | None) -> dict[str, Any]:
    """ComfyUI's default workflow, as its API form, with nodes exchanged or added by id."""
    nodes: dict[str, Any] = {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 156680208700286,
                "steps": 20,
                "cfg": 8.0,
                "sampler_name": "dpmpp_2m_sde_gpu",
                "scheduler": "karras",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "watermark", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    }
    for name, node in changes.items():
        name = name.removeprefix("n")
        inputs = {**nodes.get(name, {}).get("inputs", {}), **((node or {}).get("inputs", {}))}
        nodes[name] = {**nodes.get(name, {}), **(node or {}), "inputs": inputs}
    return nodes


def comfy(nodes: dict[str, Any]) -> ForeignMetadata:
    return said(PictureText(chunks={"prompt": json.dumps(nodes), "workflow": "{}"}))


def test_the_default_workflow() -> None:
    found = comfy(graph())
    assert found == ForeignMetadata(
        "ComfyUI",
        "a glass bottle",
        "watermark",
        ForeignSettings(
            seed=156680208700286,
            steps=20,
            guidance=8.0,
            sampler="dpmpp_2m_sde",
            schedule="karras",
            width_px=512,
            height_px=768,
        ),
        "v1-5-pruned.safetensors",
    )
    assert resolve_sampler(found.settings.sampler or "") == ("dpmpp_2m_sde", None)


def test_loras_clip_skip_vae_and_a_second_pass() -> None:
    found = comfy(
        graph(
            n10={
                "class_type": "LoraLoader",
                "inputs": {
                    "lora_name": "ink.safetensors",
                    "strength_model": 0.8,
                    "strength_clip": 1,
                    "model": ["11", 0],
                    "clip": ["12", 0],
                },
            },
            n11={
                "class_type": "LoraLoaderModelOnly",
                "inputs": {"lora_name": "b.safetensors", "strength_model": 0.5, "model": ["4", 0]},
            },
            n12={"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["4", 1]}},
            n3={"inputs": {"model": ["10", 0]}},
            n6={"inputs": {"clip": ["10", 1]}},
            n13={"class_type": "VAELoader", "inputs": {"vae_name": "mse.safetensors"}},
            n14={"class_type": "LatentUpscaleBy", "inputs": {"scale_by": 1.5, "samples": ["3", 0]}},
            n15={
                "class_type": "KSampler",
                "inputs": {
                    "seed": 7,
                    "steps": 14,
                    "cfg": 8,
                    "sampler_name": "euler",
                    "scheduler": "simple",
                    "denoise": 0.5,
                    "model": ["10", 0],
                    "positive": ["6", 0],
                    "negative": ["7", 0],
                    "latent_image": ["14", 0],
                },
            },
            n8={"inputs": {"samples": ["15", 0], "vae": ["13", 0]}},
        )
    )
    assert (found.settings.seed, found.settings.steps, found.settings.clip_skip) == (156680208700286, 20, 2)
    assert found.model == "v1-5-pruned.safetensors"
    remarks = not_repeatable(found)
    for part in ("LoRA ink.safetensors (0.8)", "LoRA b.safetensors (0.5)", "VAE mse", "a second pass of strength 0.5"):
        assert part in remarks


def test_custom_samplers_and_values_behind_links() -> None:
    nodes = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "u.safetensors"}},
        "2": {"class_type": "RescaleCFG", "inputs": {"multiplier": 0.7, "model": ["1", 0]}},
        "3": {
            "class_type": "CFGGuider",
            "inputs": {"cfg": 4.5, "model": ["2", 0], "positive": ["5", 0], "negative": ["6", 0]},
        },
        "4": {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}},
        "5": {"class_type": "CLIPTextEncode", "inputs": {"text": ["4", 0], "clip": ["13", 0]}},
        "6": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["5", 0]}},
        "7": {"class_type": "RandomNoise", "inputs": {"noise_seed": ["8", 0]}},
        "8": {"class_type": "PrimitiveInt", "inputs": {"value": 42}},
        "9": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler_ancestral"}},
        "10": {"class_type": "BasicScheduler", "inputs": {"scheduler": "ddim_uniform", "steps": 30, "denoise": 0.6}},
        "11": {"class_type": "VAEEncode", "inputs": {"pixels": ["12", 0]}},
        "12": {"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        "20": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["7", 0],
                "guider": ["3", 0],
                "sampler": ["9", 0],
                "sigmas": ["10", 0],
                "latent_image": ["11", 0],
            },
        },
    }
    found = comfy(nodes)
    assert (found.prompt, found.negative_prompt, found.model) == ("a fox", "", "u.safetensors")
    assert found.settings == ForeignSettings(
        seed=42, steps=30, guidance=4.5, sampler="euler_ancestral", schedule="leading", guidance_rescale=0.7
    )
    assert found.named == NamedFiles(start=StartingPicture(title="start.png", strength=0.6, is_masked=False))
    assert found.could_not == ()
    (remark,) = found.named.missing()
    assert remark.startswith("the picture start.png that it starts from (0.6): ")


def test_a_mask_and_an_embedding_of_comfyuis() -> None:
    prompt = "a bottle, (embedding:sub/easy-neg.pt:1.2), embedding:toy"
    found = comfy(
        graph(
            n3={"inputs": {"latent_image": ["40", 0], "denoise": 0.4}},
            n6={"inputs": {"text": prompt}},
            n40={"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["41", 0], "mask": ["42", 1]}},
            n41={"class_type": "VAEEncode", "inputs": {"pixels": ["42", 0], "vae": ["4", 2]}},
            n42={"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        )
    )
    start = StartingPicture(title="a.png", strength=0.4, is_masked=True)
    assert found.named == NamedFiles(embeddings=("easy-neg", "toy"), start=start)
    assert (found.prompt, found.could_not) == (prompt, ())
    assert plain_embeddings(prompt) == "a bottle, (easy-neg:1.2), toy"
    alone = comfy(graph(n3={"inputs": {"denoise": 0.4}}))
    assert (alone.named.start, alone.could_not) == (None, ("denoise 0.4: all steps are drawn",))


def test_combined_texts_are_joined_and_told() -> None:
    found = comfy(
        graph(
            n3={"inputs": {"positive": ["30", 0]}},
            n30={
                "class_type": "ConditioningCombine",
                "inputs": {"conditioning_1": ["6", 0], "conditioning_2": ["31", 0]},
            },
            n31={"class_type": "CLIPTextEncode", "inputs": {"text": "at night", "clip": ["4", 1]}},
        )
    )
    assert found.prompt == "a glass bottle, at night"
    assert "ConditioningCombine: its texts are joined into one" in found.could_not


@pytest.mark.parametrize(
    "nodes",
    [
        {
            "3": {
                "class_type": "KSampler",
                "inputs": {"model": ["3", 0], "positive": ["3", 0], "latent_image": ["3", 0]},
            }
        },
        graph(n3={"inputs": {"seed": ["3", 0], "steps": [], "cfg": {"x": 1}, "positive": ["99", 0], "model": [[], 0]}}),
        graph(n3={"inputs": {"seed": 1e400, "steps": "x" * 1000, "cfg": float("nan"), "sampler_name": 7}}),
        graph(n5={"inputs": {"width": -1, "height": "4" * 50}}),
    ],
    ids=["a ring", "links to nowhere", "absurd values", "absurd sizes"],
)
def test_damaged_graphs_are_read_as_far_as_they_go(nodes: dict[str, Any]) -> None:
    found = said(PictureText(chunks={"prompt": json.dumps(nodes)}))
    assert found.tool == "ComfyUI"
    assert found.settings.guidance is None or found.settings.guidance == 8


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "null", '{"a": 1}', '{"3": null}', "{", ""])
def test_what_is_no_graph_is_nothing(text: str) -> None:
    assert read_foreign(PictureText(chunks={"prompt": text})) is None
    assert read_foreign(PictureText(chunks={"invokeai_metadata": text, "sd-metadata": text, "Comment": text})) is None


# InvokeAI


def test_invokeai_3() -> None:
    document = {
        "app_version": "3.3.0post3",
        "generation_mode": "txt2img",
        "positive_prompt": "landscape",
        "negative_prompt": "low quality",
        "width": 768,
        "height": 432,
        "seed": 356120443,
        "rand_device": "cpu",
        "cfg_scale": 7.5,
        "steps": 50,
        "scheduler": "dpmpp_2m_sde_k",
        "clip_skip": 1,
        "model": {"model_name": "amixx", "base_model": "sd-1", "model_type": "main"},
        "controlnets": [{"x": 1}],
        "loras": [{"lora": {"model_name": "ink", "base_model": "sd-1"}, "weight": 0.75}],
        "vae": {"model_name": "sd-vae-ft-mse", "base_model": "sd-1"},
    }
    found = said(PictureText(chunks={"invokeai_metadata": json.dumps(document)}))
    assert (found.tool, found.prompt, found.negative_prompt, found.model) == (
        "InvokeAI",
        "landscape",
        "low quality",
        "amixx",
    )
    assert found.settings == ForeignSettings(
        seed=356120443,
        steps=50,
        guidance=7.5,
        sampler="dpmpp_2m_sde_k",
        width_px=768,
        height_px=432,
        clip_skip=2,
        rng="cpu",
    )
    assert resolve_sampler("dpmpp_2m_sde_k") == ("dpmpp_2m_sde", "karras")
    assert [remark.split(":")[0] for remark in not_repeatable(found).splitlines()] == [
        "LoRA ink (0.75)",
        "VAE sd-vae-ft-mse",
        "ControlNet",
    ]
    newer = {**document, "model": {"key": "k", "name": "amixx 2"}, "loras": [{"model": {"name": "ink 2"}, "weight": 1}]}
    found = said(PictureText(chunks={"invokeai_metadata": json.dumps(newer)}))
    assert found.model == "amixx 2"
    assert found.named.loras == (NamedLoRA("ink 2", 1),)
    masked = {**document, "generation_mode": "inpaint", "strength": 0.7}
    found = said(PictureText(chunks={"invokeai_metadata": json.dumps(masked)}))
    assert found.named.start == StartingPicture(strength=0.7, is_masked=True)


def test_invokeai_2_and_1() -> None:
    document = {
        "model": "stable diffusion",
        "model_weights": "deliberate",
        "app_id": "invoke-ai/InvokeAI",
        "app_version": "2.3.0",
        "image": {
            "prompt": [{"prompt": "a woman at night [rendering, skinny]", "weight": 1.0}],
            "steps": 50,
            "cfg_scale": 5,
            "seed": 2980747362,
            "height": 768,
            "width": 512,
            "sampler": "k_dpmpp_2",
            "type": "txt2img",
            "hires_fix": True,
        },
    }
    found = said(PictureText(chunks={"sd-metadata": json.dumps(document)}))
    assert (found.prompt, found.negative_prompt, found.model) == ("a woman at night", "rendering, skinny", "deliberate")
    assert (found.settings.seed, found.settings.sampler, found.settings.guidance) == (2980747362, "dpmpp_2m", 5)
    assert found.could_not == ("hires_fix: not supported",)
    oldest = said(PictureText(chunks={"Dream": "\"a cat, 'sitting'\" -s 50 -S 123 -W 512 -H 704 -C7.5 -A k_lms"}))
    assert oldest.prompt == "a cat, 'sitting'"
    assert oldest.settings == ForeignSettings(
        seed=123, steps=50, guidance=7.5, sampler="k_lms", schedule="linspace", width_px=512, height_px=704
    )
    assert oldest.named.start is None
    from_picture = said(PictureText(chunks={"Dream": "a -s 50 -S 1 -I a.png -f 0.6"}))
    assert from_picture.named.start == StartingPicture(strength=0.6, is_masked=False)
    assert read_foreign(PictureText(chunks={"Dream": '"unclosed'})) is None
    assert said(PictureText(chunks={"Dream": "cat"})).prompt == "cat"


# One flat object

MFLUX = {
    "mflux_version": "0.11.0",
    "model": "dev",
    "seed": 42,
    "steps": 20,
    "guidance": 3.5,
    "height": 1024,
    "width": 768,
    "lora_paths": ["/home/somebody/ink.safetensors"],
    "lora_scales": [0.5],
    "image_path": "/home/somebody/start.png",
    "prompt": "Luxury food photograph",
    "negative_prompt": None,
}
SWARM = {
    "sui_image_params": {
        "prompt": "A man mid-sprint",
        "negativeprompt": "blur",
        "model": "OfficialStableDiffusion/sd_xl",
        "seed": 123998,
        "steps": 25,
        "cfgscale": 0.8,
        "width": 512,
        "height": 768,
        "sampler": "euler",
        "scheduler": "simple",
        "swarm_version": "0.9.1.1",
    }
}
FOOOCUS = {
    "prompt": "a cat",
    "negative_prompt": "",
    "resolution": "(1152, 896)",
    "guidance_scale": 4.0,
    "steps": 30,
    "seed": "1234",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "base_model": "juggernaut",
    "clip_skip": 2,
    "loras": [["sd_xl_offset", 0.1, "x"]],
    "version": "Fooocus v2.5",
}
DRAW_THINGS = (
    "<x:xmpmeta><rdf:Description><xmp:CreatorTool>Draw Things</xmp:CreatorTool><exif:UserComment><rdf:Alt>"
    '<rdf:li xml:lang="x-default">{&#34;c&#34;:&#34;a &lt;red&gt; fox &amp; cub&#34;,&#34;uc&#34;:&#34;blurry&#34;,'
    "&#34;seed&#34;:7,&#34;steps&#34;:20,&#34;scale&#34;:7.5,&#34;sampler&#34;:&#34;DPM++ 2M Karras&#34;,"
    "&#34;size&#34;:&#34;512x640&#34;,&#34;model&#34;:&#34;sd_v1.5_f16.ckpt&#34;}</rdf:li></rdf:Alt>"
    "</exif:UserComment></rdf:Description></x:xmpmeta>"
)
NOVELAI = {
    "prompt": "1girl",
    "uc": "lowres",
    "steps": 28,
    "height": 1216,
    "width": 832,
    "scale": 5.0,
    "cfg_rescale": 0.4,
    "seed": 3719051443,
    "sampler": "k_euler_ancestral",
    "noise_schedule": "karras",
}


@pytest.mark.parametrize(
    ("text", "remarks", "model"),
    [
        (
            PictureText(
                chunks={
                    "Software": "NovelAI",
                    "Comment": json.dumps({**NOVELAI, "sm": True, "sm_dyn": False, "request_type": "Img2ImgRequest"}),
                    "Source": "NovelAI Diffusion V4 37442FCA",
                }
            ),
            ["the picture it starts from", "sm True: not a setting", "starting noise: drawn on a GPU there"],
            "NovelAI Diffusion V4 37442FCA",
        ),
        (
            PictureText(
                json.dumps({**FOOOCUS, "refiner_model": "None", "styles": "['Fooocus V2']", "freeu": "[]"}),
                chunks={"fooocus_scheme": "fooocus"},
            ),
            ["LoRA sd_xl_offset (0.1)", "styles ['Fooocus V2']: not a setting"],
            "juggernaut",
        ),
        (
            PictureText(
                json.dumps({"sui_image_params": {**SWARM["sui_image_params"], "variationseed": 3, "vae": "None"}})
            ),
            ["variationseed 3: not a setting"],
            None,
        ),
    ],
    ids=["NovelAI", "Fooocus", "SwarmUI"],
)
def test_what_one_object_says_beyond_us_is_listed(text: PictureText, remarks: list[str], model: str | None) -> None:
    foreign = read_foreign(text)
    assert foreign is not None
    said = not_repeatable(foreign)
    assert [each for each in remarks if each not in said] == [], said
    assert "sm_dyn" not in said
    assert "refiner_model" not in said
    if model is not None:
        assert foreign.model == model


def test_eta_and_rescale_of_a1111_are_not_dropped_in_silence() -> None:
    fields = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, RNG: CPU, Eta: 0.67, CFG rescale: 0.7"
    foreign = a1111(f"a cat\n{fields}")
    assert foreign.settings.guidance_rescale == 0.7
    assert foreign.could_not == ("Eta 0.67: ancestral samplers add all of their noise",)


@pytest.mark.parametrize(
    ("text", "tool", "prompt", "negative", "settings"),
    [
        (
            PictureText(chunks={"UserComment": json.dumps(MFLUX)}),
            "mflux",
            "Luxury food photograph",
            "",
            ForeignSettings(seed=42, steps=20, guidance=3.5, width_px=768, height_px=1024),
        ),
        (
            PictureText(json.dumps(SWARM)),
            "SwarmUI",
            "A man mid-sprint",
            "blur",
            ForeignSettings(
                seed=123998, steps=25, guidance=0.8, sampler="euler", schedule="simple", width_px=512, height_px=768
            ),
        ),
        (
            PictureText(json.dumps(FOOOCUS), chunks={"fooocus_scheme": "fooocus"}),
            "Fooocus",
            "a cat",
            "",
            ForeignSettings(
                seed=1234,
                steps=30,
                guidance=4.0,
                sampler="dpmpp_2m_sde",
                schedule="karras",
                width_px=1152,
                height_px=896,
                clip_skip=2,
            ),
        ),
        (
            PictureText(chunks={"XMP": DRAW_THINGS}),
            "Draw Things",
            "a <red> fox & cub",
            "blurry",
            ForeignSettings(seed=7, steps=20, guidance=7.5, sampler="DPM++ 2M Karras", width_px=512, height_px=640),
        ),
        (
            PictureText(chunks={"Software": "NovelAI", "Comment": json.dumps(NOVELAI), "Description": "1girl"}),
            "NovelAI",
            "1girl",
            "lowres",
            ForeignSettings(
                seed=3719051443,
                steps=28,
                guidance=5.0,
                sampler="k_euler_ancestral",
                schedule="karras",
                width_px=832,
                height_px=1216,
                guidance_rescale=0.4,
            ),
        ),
    ],
    ids=["mflux", "SwarmUI", "Fooocus", "Draw Things", "NovelAI"],
)
def test_tools_with_one_object(
    text: PictureText, tool: str, prompt: str, negative: str, settings: ForeignSettings
) -> None:
    found = said(text)
    assert (found.tool, found.prompt, found.negative_prompt, found.settings) == (tool, prompt, negative, settings)
    if settings.sampler is not None:
        resolve_sampler(settings.sampler)


def test_mflux_names_files_without_their_folders() -> None:
    remarks = not_repeatable(said(PictureText(chunks={"UserComment": json.dumps(MFLUX)})))
    assert remarks.startswith("LoRA ink.safetensors (0.5)")
    assert "/home" not in remarks


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (PictureText(chunks={"UserComment": json.dumps({**MFLUX, "image_strength": 0.25})}),
         StartingPicture(strength=0.75, is_masked=False)),
        (PictureText(json.dumps({"sui_image_params": {**SWARM["sui_image_params"], "initimagecreativity": 0.6}})),
         StartingPicture(strength=0.6)),
        (PictureText(chunks={"Software": "NovelAI", "Comment": json.dumps(
            {**NOVELAI, "request_type": "NativeInfillingRequest", "strength": 0.7})}),
         StartingPicture(strength=0.7, is_masked=True)),
        (PictureText(json.dumps(SWARM)), None),
    ],
    ids=["mflux, which counts what stays", "SwarmUI, which tells of no mask", "NovelAI", "no picture"],
)  # fmt: skip
def test_how_one_object_says_that_a_picture_was_used(text: PictureText, start: StartingPicture | None) -> None:
    assert said(text).named.start == start


# Files


def png_with(path: Path, chunks: dict[str, str] | None = None, exif: bytes | None = None) -> Path:
    info = PngImagePlugin.PngInfo()
    for name, value in (chunks or {}).items():
        info.add_text(name, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info, **({} if exif is None else {"exif": exif}))
    return path


def test_comfyuis_webp_carries_its_graph_as_a_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "workflow:{}", f"prompt:{json.dumps(graph())}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert said(read_picture_text(tmp_path / "a.webp")[2]).prompt == "a glass bottle"


def test_mfluxs_png_carries_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + json.dumps(MFLUX).encode()
    path = png_with(tmp_path / "a.png", exif=exif.tobytes())
    assert said(read_picture_text(path)[2]).tool == "mflux"


@pytest.mark.parametrize("codec", ["utf-16-be", "utf-16-le"])
def test_a_comment_is_read_in_either_byte_order(codec: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + HIRES.encode(codec)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture_text(tmp_path / "a.jpg")[2].parameters == HIRES


def exif_entries(data: bytes) -> dict[int, tuple[int, bytes]]:
    """Type and value of each tag of the EXIF section, read as the standard says."""
    assert data[:8] == b"MM\0*\0\0\0\x08"
    (count,) = struct.unpack_from(">H", data, 8)
    assert count == 1
    tag, kind, _, section = struct.unpack_from(">HHII", data, 10)
    assert (tag, kind) == (0x8769, 4)
    (count,) = struct.unpack_from(">H", data, section)
    entries: dict[int, tuple[int, bytes]] = {}
    for k in range(count):
        tag, kind, length, place = struct.unpack_from(">HHII", data, section + 2 + 12 * k)
        entries[tag] = kind, data[place : place + length]
    assert list(entries) == sorted(entries)
    return entries


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_our_comment_has_the_standards_type_and_byte_order(format: str) -> None:
    """Readers that look at the type (piexif, which A1111 reads with) find nothing in a tag of type BYTE."""
    data = encode_picture(np.zeros((8, 8, 3), np.uint8), format, PictureText("a fox, 🦊", {"format": 1}))
    with Image.open(io.BytesIO(data)) as image:
        entries = exif_entries(image.info["exif"].removeprefix(b"Exif\0\0"))
    assert entries[0x9286] == (7, b"UNICODE\0" + "a fox, 🦊".encode("utf-16-be"))
    assert entries[0x927C] == (7, b'latentgen\0{"format": 1}')


def test_a_compressed_text_that_grows_without_bounds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    data = png_with(path).read_bytes()
    bomb = b"parameters\0\0" + zlib.compress(bytes(100 * 2**20), 9)
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb + struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    path.write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_picture_text(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cut", range(8, 80, 9))
def test_damaged_exif_is_no_exif(cut: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + b"x" * 30
    png_with(tmp_path / "a.png", exif=exif.tobytes()[:cut])
    assert read_foreign(read_picture_text(tmp_path / "a.png")[2]) is None


@pytest.mark.parametrize(
    ("value", "number", "whole"),
    [
        (7, 7.0, 7),
        ("7.5", 7.5, None),
        ("12", 12.0, 12),
        (True, None, None),
        ("nan", None, None),
        (float("inf"), None, None),
        (2**63 + 1, float(2**63), 2**63 + 1),
        (10**400, None, None),
        (None, None, None),
        ([], None, None),
        ("１２", 12.0, None),
    ],
)
def test_numbers_are_numbers(value: object, number: float | None, whole: int | None) -> None:
    assert as_number(value) == number
    assert as_whole(value) == whole


LONG = 400_000


@pytest.mark.parametrize(
    "text",
    [
        {"parameters": "X" + " " * LONG + "y"},
        {"parameters": "Steps: 1," + "a:{," * LONG},
        {"chunks": {"XMP": "Draw Things<exif:UserComment>" + "{" * LONG}},
        {"chunks": {"XMP": "Draw Things" + "<exif:UserComment>{" * (LONG // 20)}},
        {"chunks": {"XMP": "Draw Things<exif:UserComment>{" + "}  " * LONG}},
        {"chunks": {"sd-metadata": json.dumps({"image": {"prompt": "a [b]" + " " * LONG + "c"}})}},
    ],
    ids=["A1111's key", "A1111's fields", "braces", "comments", "closed braces", "InvokeAI's brackets"],
)
def test_words_of_any_length_are_read_at_once(text: dict[str, Any]) -> None:
    """A pattern that backtracks would take minutes."""
    code = """
import json, sys
from latentgen.images.files import PictureText
from latentgen.images.foreign import read_foreign
read_foreign(PictureText(**json.load(sys.stdin)))
"""
    subprocess.run([sys.executable, "-c", code], input=json.dumps(text), text=True, check=True, timeout=60)


def test_a_list_of_fields_ends() -> None:
    fields = parse_parameters("Steps: 1, Sampler: a, " + ", ".join(f"a{i}: {i}" for i in range(5000))).fields
    assert (fields["a900"], "a1100" in fields) == ("900", False)


def test_objects_are_objects() -> None:
    assert parse_object('{"a": 1}') == {"a": 1}
    for text in ("[1]", "{", "[" * 50_000, "1" * 10_000, "", None):
        assert parse_object(text) is None
