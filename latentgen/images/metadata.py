"""How a picture was made, as it travels inside the picture. Never a path, a user name or a host name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from latentgen.diffusion.strength import guided_steps
from latentgen.errors import InputError
from latentgen.images.a1111 import A1111Parameters
from latentgen.request import GenerationRequest

FORMAT = 1
"""Raised when a reader of the old form would misread the new one."""

COMPILED = "torch.compile"
KERNELS = (
    *("none", COMPILED),
    *(f"{kind}{precision}" for kind in ("oneDNN", "compiled", "Winograd") for precision in ("", " int8")),
)
MAX_THREADS = 1024
MAX_BATCH_SIZE = 1024
"""Limits of what a run may use, and so of what a picture's file may make `replay` use."""


@dataclass(frozen=True, slots=True)
class Computation:
    """What a picture was computed with: the same request may differ in the last bit where these differ."""

    device: str
    """"cpu", "cuda" or "mps"."""
    dtype: str
    torch: str
    """torch's version."""
    cpu: str
    """The vector instructions torch uses, for instance "AVX512"."""
    threads: int
    """1 .. MAX_THREADS."""
    batch_size: int
    """How many pictures went through the network together: 1 .. MAX_BATCH_SIZE."""
    vae_tiling: str = "auto"
    """"auto", "on" or "off": whether the autoencoder worked in tiles."""
    kernels: str = "none"
    """One of `KERNELS`: what computed the fast forms of U-Net and autoencoder, or that both were compiled for a GPU."""


@dataclass(frozen=True, slots=True)
class VAEUse:
    """The VAE that a picture was drawn with instead of the model's own."""

    name: str
    """The file's name without its ending, or the folder's; never a path."""
    fingerprint: str
    """Ten hexadecimal digits of its SHA-256."""


@dataclass(frozen=True, slots=True)
class PictureMetadata:
    request: GenerationRequest
    model: str
    """The model's name: the last part of its folder."""
    fingerprint: str
    """The model's `ModelBundle.fingerprint()`."""
    version: str
    """latentgen's."""
    pixels_sha256: str
    computation: Computation
    vae: VAEUse | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "request": self.request.to_json(),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "version": self.version,
            "pixels_sha256": self.pixels_sha256,
            "computation": asdict(self.computation),
            **({} if self.vae is None else {"vae": asdict(self.vae)}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PictureMetadata:
        """Raises InputError if this is not what `to_json` wrote."""
        if value.get("format") != FORMAT:
            raise InputError(
                f"the picture's metadata have format {value.get('format')!r}; this version reads {FORMAT}",
                hint="use the version of latentgen that made it",
            )
        texts = {name: value.get(name) for name in ("model", "fingerprint", "version", "pixels_sha256")}
        request, computation, vae = value.get("request"), value.get("computation"), value.get("vae")
        if (
            not isinstance(request, dict)
            or not isinstance(computation, dict)
            or not all(isinstance(text, str) for text in texts.values())
        ):
            raise InputError("the picture's metadata are incomplete")
        # Older pictures do not say whether there were tiles, and knew no fast form.
        computed: dict[str, Any] = {"vae_tiling": "auto", "kernels": "none", **cast("dict[str, Any]", computation)}
        kinds = {field.name: int if field.name in ("threads", "batch_size") else str for field in fields(Computation)}
        if set(kinds) != set(computed) or any(type(computed[name]) is not kind for name, kind in kinds.items()):
            raise InputError("the picture's metadata do not say how it was computed")
        for name, high in (("threads", MAX_THREADS), ("batch_size", MAX_BATCH_SIZE)):
            if not 1 <= computed[name] <= high:
                raise InputError(f"the picture's metadata: {name} is out of range", hint=f"1 to {high}")
        if computed["vae_tiling"] not in ("auto", "on", "off"):
            raise InputError("the picture's metadata: vae_tiling is neither auto, on nor off")
        if computed["kernels"] not in KERNELS:
            raise InputError(f"the picture's metadata: kernels is none of {', '.join(KERNELS)}")
        return cls(
            request=GenerationRequest.from_json(cast("dict[str, Any]", request)),
            computation=Computation(**computed),
            vae=None if vae is None else _vae_from_json(vae),
            **cast("dict[str, str]", texts),
        )

    def a1111(self, *, sampler_title: str, schedule_title: str) -> A1111Parameters:
        """The same in the field's common words; the titles are the registry's ("DPM++ 2M", "Karras")."""
        request = self.request
        init, hires = request.init, request.hires
        strength = hires.strength if hires is not None else None if init is None else init.strength
        fields: dict[str, str | None] = {
            "Steps": str(request.steps),
            "Sampler": sampler_title,
            "Schedule type": schedule_title,
            "CFG scale": _number(request.guidance),
            "Seed": str(request.seed),
            "Size": f"{request.width_px}x{request.height_px}",
            "Model hash": self.fingerprint[:10],
            "Model": self.model,
            "VAE hash": None if self.vae is None else self.vae.fingerprint,
            "VAE": None if self.vae is None else self.vae.name,
            "Denoising strength": None if strength is None else _number(strength),
            "Clip skip": str(request.clip_skip) if (request.clip_skip or 1) > 1 else None,
            "RNG": request.rng.upper(),
            "Mask blur": str(request.init.mask_blur_px) if request.init and request.init.mask_sha256 else None,
            "Hires upscale": None if hires is None else _number(hires.scale),
            "Hires upscaler": None if hires is None else "Lanczos",
            "Eta": _number(request.eta) if request.eta else None,
            "Skip Early CFG": _unguided(request),
            "CFG Rescale phi": _number(request.guidance_rescale) if request.guidance_rescale else None,
            "Lora hashes": ", ".join(f"{each.name}: {each.fingerprint}" for each in request.loras) or None,
            "TI hashes": ", ".join(f"{each.name}: {each.fingerprint}" for each in request.embeddings) or None,
            "Version": f"latentgen {self.version}",
        }
        tags = [
            f"<lora:{each.name}:{_number(each.scale)}>"
            for each in request.loras
            if not any(f"<lora:{each.name}{end}" in request.prompt for end in (":", ">"))
        ]
        return A1111Parameters(
            # Where a LoRA came with a flag, its tag is not in the prompt yet.
            prompt=" ".join([request.prompt, *tags]),
            negative_prompt=request.negative_prompt,
            fields={name: value for name, value in fields.items() if value is not None},
        )


def _unguided(request: GenerationRequest) -> str | None:
    """The share of the steps up to and with which A1111 is not to guide; only an interval to the end has that name."""
    start, end = request.guidance_interval
    first = guided_steps(request.steps, start, end).start
    return _number((first - 0.5) / request.steps) if first > 0 and end == 1 else None


def _vae_from_json(value: object) -> VAEUse:
    given = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    if set(given) != {"name", "fingerprint"} or not all(isinstance(text, str) for text in given.values()):
        raise InputError("the picture's metadata do not say which VAE it was drawn with")
    return VAEUse(**given)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
