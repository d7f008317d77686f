"""From requests to pictures: tokens, context, noise, sampler, VAE, bytes.

prompt -> token ids (B, 77) -> context (B, 77, D)
seed   -> noise (B, C, h, w) -> sampler around the guided denoiser -> latents -> z -> pixels (3, H, W) in [-1, 1]
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

import torch
from torch import Tensor, nn

from latentgen import __version__, embedded_model_path
from latentgen.checkpoints.folder import ModelBundle, load_model
from latentgen.diffusion.guidance import GuidedDenoiser
from latentgen.diffusion.latents import LatentSpace
from latentgen.diffusion.noise import NoiseSource, starting_point
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.errors import InputError, LatentgenError, RuntimeFailure
from latentgen.images.a1111 import format_parameters
from latentgen.images.files import FORMATS, PictureText, encode_picture, write_file
from latentgen.images.metadata import MAX_BATCH_SIZE, Computation, PictureMetadata
from latentgen.images.pixels import Pixels, pixels_sha256, to_pixels
from latentgen.request import GenerationRequest, RequestFields, check_fits, complete_request
from latentgen.samplers.registry import SAMPLERS, SCHEDULES, get_sampler
from latentgen.samplers.step import OnStep, Step

if TYPE_CHECKING:
    from PIL.Image import Image

OnFailure = Callable[[GenerationRequest, LatentgenError], None]
OnCut = Callable[[str], None]
"""Called with the end of a prompt that does not fit into the text encoder's tokens."""

GPU_BATCH_SIZE = 4
"""Pictures that go through a GPU together unless told otherwise. On a CPU it is one: more gain little there, and one
alone is what makes a picture the same to the last bit whatever it is drawn together with."""
CONTEXTS_KEPT = 64
"""Encoded prompts remembered while drawing: a negative prompt and a batch, however many a prompt file holds."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one picture; what a batch did together is shared out evenly."""

    text_s: float
    denoise_s: float
    decode_s: float


@dataclass(frozen=True, slots=True, eq=False)
class GenerationResult:
    pixels: Pixels
    """(H, W, 3) bytes."""
    metadata: PictureMetadata
    timings: Timings
    cut_prompt: str | None = None
    """The end of the prompt that the text encoder did not see; None if it saw all of it."""

    @property
    def request(self) -> GenerationRequest:
        return self.metadata.request

    @property
    def seed(self) -> int:
        return self.metadata.request.seed

    @property
    def image(self) -> Image:
        from PIL import Image

        return Image.fromarray(self.pixels, "RGB")

    def encode(self, format: str = "PNG", *, with_metadata: bool = True) -> bytes:
        """The bytes of a picture file; `format` is "PNG", "JPEG" or "WEBP"."""
        return encode_picture(self.pixels, format, picture_text(self.metadata) if with_metadata else None)

    def save(self, path: Path | str, *, overwrite: bool = False, with_metadata: bool = True) -> None:
        """Write a picture file of the kind its name ends with. Raises FileExistsError rather than replace one."""
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise InputError(f"{path.name} has no picture format's ending", hint=f"one of {', '.join(FORMATS)}")
        data = self.encode(FORMATS[path.suffix.lower()], with_metadata=with_metadata)
        write_file(path, data, overwrite=overwrite)


def picture_text(metadata: PictureMetadata) -> PictureText:
    """The words a picture file carries: A1111's and our own."""
    request = metadata.request
    parameters = metadata.a1111(
        sampler_title=SAMPLERS[request.sampler].title, schedule_title=SCHEDULES[request.schedule].title
    )
    return PictureText(format_parameters(parameters), metadata.to_json())


class TextToImage:
    """A loaded model that draws requests.

    The seed contract. A picture's noise, at the start and at every stochastic step, follows from its own seed alone
    (`NoiseSource`), so the number of pictures and the batch size never change what is drawn. On one machine, at one
    thread count, in float32, a picture drawn one at a time (the default on a CPU) is the same to the last bit however
    many are asked for. Not promised yet: the same bits for another batch size or thread count. There, matrix products
    are summed in another order; tests hold the difference to 1/255 for batches of 1 and 4.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle
        self.name = bundle.name
        self.schedule = NoiseSchedule.from_config(bundle.config.diffusion)
        self.latent_space = LatentSpace.from_config(bundle.config.vae)
        self.fingerprint = bundle.fingerprint()
        parameter = next(bundle.unet.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @classmethod
    def load(cls, folder: Path | str | None = None, *, device: str = "auto", dtype: str = "auto") -> TextToImage:
        """Open a model folder, the embedded model if None. `dtype` auto is float32 on a CPU, float16 on a GPU.

        Raises ModelNotFoundError or ModelLoadError for the folder, InputError for a device that is not there.
        """
        folder = embedded_model_path() if folder is None else Path(folder)
        chosen = choose_device(device)
        return cls(load_model(folder, device=chosen, dtype=choose_dtype(dtype, chosen)))

    def draw(
        self, prompt: str, *, seed: int, count: int = 1, **given: Unpack[RequestFields]
    ) -> Iterator[GenerationResult]:
        """Pictures of one prompt with seeds seed, seed + 1, ...; what is not `given` is the model's default."""
        config = self.bundle.config
        return self.generate([complete_request(config, prompt=prompt, seed=seed + i, **given) for i in range(count)])

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
        on_failure: OnFailure | None = None,
        on_cut: OnCut | None = None,
    ) -> Iterator[GenerationResult]:
        """Draw requests in order; each picture is given out as soon as it is decoded.

        `batch_size` is how many go through the network together: it changes speed and memory, never the noise, but it
        may change the last bit of the arithmetic. `on_step` sees every sampler step of every batch. A picture whose
        numbers are not finite raises RuntimeFailure, or with `on_failure` is told to it and left out. A prompt that is
        too long is drawn without its end, with one warning, or with `on_cut` that is told the end instead.
        Raises InputError before anything is drawn if one of the requests does not fit this model.
        """
        for request in requests:
            self._check(request)
        size = (1 if self.device.type == "cpu" else GPU_BATCH_SIZE) if batch_size is None else batch_size
        if not 1 <= size <= MAX_BATCH_SIZE:
            raise InputError(f"batch size {size} must lie between 1 and {MAX_BATCH_SIZE}")
        self._tell_cuts(requests, _warn_of_cut if on_cut is None else on_cut)
        return self._generate(_batches(requests, size), on_step, on_failure)

    def _generate(
        self, batches: Sequence[Sequence[GenerationRequest]], on_step: OnStep | None, on_failure: OnFailure | None
    ) -> Iterator[GenerationResult]:
        encode = lru_cache(maxsize=CONTEXTS_KEPT)(self._context)
        for batch in batches:
            started = time.perf_counter()
            cond = torch.stack([encode(request.prompt) for request in batch])
            is_guided = batch[0].guidance != 1
            uncond = torch.stack([encode(request.negative_prompt) for request in batch]) if is_guided else None
            encoded = time.perf_counter()
            latents, failed_at = self._denoise(batch, cond, uncond, on_step)
            denoised = time.perf_counter()
            for k, request in enumerate(batch):
                begun = time.perf_counter()
                try:
                    pixels = self._decode(latents[k : k + 1], failed_at[k], request.steps)
                except RuntimeFailure as failure:
                    if on_failure is None:
                        raise
                    on_failure(request, failure)
                    continue
                timings = Timings(
                    (encoded - started) / len(batch), (denoised - encoded) / len(batch), time.perf_counter() - begun
                )
                cut = self.bundle.tokenizer.inspect(request.prompt).cut or None
                yield GenerationResult(pixels, self._metadata(request, pixels, len(batch)), timings, cut)

    def _check(self, request: GenerationRequest) -> None:
        config = self.bundle.config
        check_fits(request, config)
        if request.sampler not in SAMPLERS:
            raise InputError(f"no such sampler: {request.sampler!r}", hint=f"choose from {', '.join(SAMPLERS)}")
        if request.schedule not in SCHEDULES:
            raise InputError(f"no such schedule: {request.schedule!r}", hint=f"choose from {', '.join(SCHEDULES)}")
        if config.unet.in_channels != config.vae.latent_channels:
            raise InputError(
                f"{self.name} is not a text-to-image model: its U-Net takes {config.unet.in_channels} channels, "
                f"the latents have {config.vae.latent_channels}"
            )

    def _tell_cuts(self, requests: Sequence[GenerationRequest], tell: OnCut) -> None:
        """Once for each distinct text; a negative prompt counts where guidance uses it."""
        texts = [request.prompt for request in requests]
        texts += [request.negative_prompt for request in requests if request.guidance != 1]
        for text in dict.fromkeys(texts):
            if cut := self.bundle.tokenizer.inspect(text).cut:
                tell(cut)

    @torch.inference_mode()
    def _context(self, prompt: str) -> Tensor:
        """(77, D) of a prompt, encoded by itself, so that it does not depend on what is drawn beside it."""
        token_ids = self.bundle.tokenizer.encode([prompt]).to(self.device)
        return self.bundle.text_encoder(token_ids, penultimate=self.bundle.config.use_penultimate_layer)[0]

    @torch.inference_mode()
    def _denoise(
        self, batch: Sequence[GenerationRequest], cond: Tensor, uncond: Tensor | None, on_step: OnStep | None
    ) -> tuple[Tensor, list[int | None]]:
        """Latents (B, C, h, w) float32, and for each picture the first step that was not finite, if any."""
        request = batch[0]  # alike in all that the sampler looks at, see _batches
        sigmas = self.schedule.inference_sigmas(request.steps, request.schedule)
        shape = self.latent_space.shape(request.height_px, request.width_px)
        source = NoiseSource([each.seed for each in batch])
        denoiser = GuidedDenoiser(
            lambda x, t, context: self.bundle.unet(x.to(self.dtype), t, context),
            self.schedule,
            self.bundle.config.diffusion.prediction_type,
            cond,
            uncond,
            request.guidance,
        )
        finite: list[Tensor] = []

        def watch(step: Step) -> None:
            # Kept on the device and looked at once at the end: a look at every step would stall a GPU.
            finite.append(torch.isfinite(step.denoised).flatten(1).all(dim=1))
            if on_step is not None:
                on_step(step)

        sampler = get_sampler(request.sampler)
        if SAMPLERS[request.sampler].accepts_eta:
            sampler = partial(cast("Callable[..., Tensor]", sampler), eta=request.eta)
        x = starting_point(source.draw(shape), float(sigmas[0])).to(self.device)
        latents = sampler(denoiser, x, sigmas, noise=lambda: source.draw(shape).to(self.device), on_step=watch)
        by_picture = torch.stack(finite).T.tolist()
        return latents, [flags.index(False) if False in flags else None for flags in by_picture]

    @torch.inference_mode()
    def _decode(self, latents: Tensor, failed_at: int | None, steps: int) -> Pixels:
        """One picture's latents (1, C, h, w) to bytes. Raises RuntimeFailure for numbers that are not finite."""
        hint = None if self.dtype == torch.float32 else "--dtype float32 computes with a larger range"
        if failed_at is not None or not bool(torch.isfinite(latents).all()):
            where = f"from step {failed_at + 1} of {steps} on" if failed_at is not None else "after the last step"
            raise RuntimeFailure(f"the latents are not finite {where}", hint=hint)
        vae = self.bundle.vae
        z = self.latent_space.denormalize(latents)
        dtype = next(vae.parameters()).dtype
        pixels = vae.decode(z.to(dtype))
        if not bool(torch.isfinite(pixels).all()) and dtype != torch.float32:
            # Half precision overflows in some published VAEs; float32 does not. Only for this picture: the next one
            # must come out as it would alone. The way to float32 and back is exact.
            try:
                _convert(vae, torch.float32)
                pixels = vae.decode(z.float())
            finally:
                _convert(vae, dtype)
        if not bool(torch.isfinite(pixels).all()):
            raise RuntimeFailure("the decoded picture is not finite", hint=hint)
        return to_pixels(pixels[0])

    def _metadata(self, request: GenerationRequest, pixels: Pixels, batch_size: int) -> PictureMetadata:
        return PictureMetadata(
            request=request,
            model=self.name,
            fingerprint=self.fingerprint,
            version=__version__,
            pixels_sha256=pixels_sha256(pixels),
            computation=Computation(
                device=self.device.type,
                dtype=dtype_name(self.dtype),
                torch=str(torch.__version__),
                cpu=torch.backends.cpu.get_cpu_capability(),
                threads=torch.get_num_threads(),
                batch_size=batch_size,
            ),
        )


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Parameters of another dtype, in place. Made outside inference mode: those made inside could never be trained."""
    with torch.inference_mode(False):
        module.to(dtype)


def _warn_of_cut(cut: str) -> None:
    # From here to the caller: _tell_cuts, generate.
    warnings.warn(f"the text encoder does not see the end of the prompt: {cut!r}", stacklevel=4)


def _batches(requests: Sequence[GenerationRequest], size: int) -> list[list[GenerationRequest]]:
    """Neighbours that differ in prompt and seed only, at most `size` together."""
    batches: list[list[GenerationRequest]] = []
    for request in requests:
        if batches and len(batches[-1]) < size and _walk(batches[-1][0]) == _walk(request):
            batches[-1].append(request)
        else:
            batches.append([request])
    return batches


def _walk(request: GenerationRequest) -> tuple[object, ...]:
    """Everything of a request that a batch shares."""
    return (
        request.width_px,
        request.height_px,
        request.steps,
        request.guidance,
        request.sampler,
        request.schedule,
        request.eta,
    )


def present_devices() -> list[str]:
    """Devices of this machine that torch can use, best first."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda", "cuda:1" or "mps". Raises InputError naming the devices present if it is not one."""
    present = present_devices()
    if name == "auto":
        return torch.device(present[0])
    known = name in present or (name == "cuda" and present[0].startswith("cuda"))
    if not known:
        raise InputError(f"there is no device {name} here", hint=f"present: {', '.join(present)}")
    return torch.device(name)


DTYPES = ("float32", "bfloat16", "float16")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" or one of DTYPES. Raises InputError for one that the device computes badly or not at all."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise InputError(f"there is no dtype {name}", hint=f"choose from {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise InputError("float16 is for GPUs: a CPU computes it slowly", hint="use bfloat16 or float32")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
