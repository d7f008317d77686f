"""From requests to pictures: prompts, noise, sampler, VAE, bytes.

prompts -> contexts (B, L, D)                                    `conditioning.py`
seeds   -> noise (B, C, h, w), or a picture with noise on it      `start.py`
        -> sampler around the guided denoiser -> latents          `network.py`, `diffusion/`, `samplers/`
        -> z -> pixels (3, H, W) in [-1, 1] -> bytes               `decoding.py`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentgen import __version__, embedded_model_path
from latentgen.checkpoints.folder import ModelBundle, load_model, load_vae
from latentgen.checkpoints.other_vae import other_vae_fingerprint, other_vae_name, read_other_vae
from latentgen.config import ModelConfig
from latentgen.diffusion.denoiser import may_run_ahead
from latentgen.diffusion.guidance import GuidedDenoiser, guided_sigmas
from latentgen.diffusion.latents import LatentSpace
from latentgen.diffusion.noise import NoiseSource
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.diffusion.strength import check_passes, hires_size, keeps_pixels
from latentgen.errors import InputError, LatentgenError, RuntimeFailure
from latentgen.images.metadata import COMPILED, MAX_BATCH_SIZE, Computation, PictureMetadata, VAEUse
from latentgen.images.pixels import Pixels, pixels_sha256
from latentgen.kernels.crowding import EXACT_THREADS, expect_others, room_for_others
from latentgen.kernels.gpu import check_can_compile, decode_compiled, lay_out_for_gpu, wants_channels_last
from latentgen.kernels.unet import FastForm
from latentgen.kernels.vae import speed_up_vae
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL
from latentgen.pipeline.adapters import Adapters
from latentgen.pipeline.conditioning import Conditioner, Conditioning
from latentgen.pipeline.decoding import decode, encode
from latentgen.pipeline.deep_cache import CachingDenoiser, DeepCache
from latentgen.pipeline.devices import choose_device, choose_dtype, dtype_name
from latentgen.pipeline.drawing import Drawing
from latentgen.pipeline.given_pictures import GivenPicture, start_from
from latentgen.pipeline.hires import enlarge
from latentgen.pipeline.init_picture import InitPictures, as_tensor
from latentgen.pipeline.low_memory import OnDemandBundle, Part
from latentgen.pipeline.network import Network
from latentgen.pipeline.result import GenerationResult, Timings
from latentgen.pipeline.start import Start, start_from_noise, start_from_picture
from latentgen.pipeline.tiling import Tiling
from latentgen.request import (
    EmbeddingUse,
    GenerationRequest,
    LoRAUse,
    RequestFields,
    check_fits,
    complete_request,
    random_seed,
)
from latentgen.samplers.registry import SAMPLERS, SCHEDULES, get_sampler, resolve_sampling
from latentgen.samplers.step import OnStep, Step

OnFailure = Callable[[GenerationRequest, LatentgenError], None]

GPU_BATCH_SIZE = 4
"""Pictures that go through a GPU together unless told otherwise."""


class TextToImage:
    """A loaded model that draws requests.

    The seed contract. A picture's noise, at the start and at every stochastic step, follows from its own seed alone
    (`NoiseSource`), so the number of pictures and the batch size never change what is drawn.

    The same bits. On a CPU, in float32 and in the fast form's bfloat16, a request gives the same pixels to the last
    bit: for every batch size and number of threads, alone or among others, in this process or another, on every machine
    with this kind of CPU, operating system, release of torch and, in the fast form, compiled kernels or none
    (`benchmarks/exact.py` tells of a machine whether it holds). The PNGs are the same too, but for the number of
    threads in their metadata. For that, pictures go through a CPU one by one whatever the batch size, and no operation
    may sum in an order that depends on the threads (`PointwiseConv2d`, `attention`, `kernels/`). Not promised: the same
    bits on another kind of CPU, or on a GPU with another batch size. There matrix products are summed in another order,
    which changes the last bits of a picture and not what it shows.
    """

    def __init__(self, bundle: ModelBundle, *, fast: bool = True, int8: bool = False, compile: bool = False) -> None:
        """fast: on a CPU in bfloat16, draw with the U-Net's fast form (`kernels/`); elsewhere it means nothing.

        int8: that form with 8-bit integers, another picture in less time. Raises InputError where there is none.
        compile: on a GPU, by torch.compile (`kernels/gpu.py`). Raises InputError elsewhere.
        """
        self.bundle = bundle
        self.name = bundle.name
        self.schedule = NoiseSchedule.from_config(bundle.config.diffusion)
        self.latent_space = LatentSpace.from_config(bundle.config.vae)
        self.fingerprint = bundle.fingerprint()
        self.device, self.dtype = bundle.device, bundle.dtype
        self.fast_form = FastForm(bundle.unet, wanted=fast, int8=int8)
        self._fast = fast
        self.adapters = Adapters(bundle, self.fast_form.leave)
        self.low_memory = isinstance(bundle, OnDemandBundle)
        """Whether one network is in memory at a time; on a GPU the passes of guidance go one after the other too."""
        if compile:
            check_can_compile(self.device, low_memory=self.low_memory)
        self.compiled = compile
        if isinstance(bundle, OnDemandBundle):
            bundle.follow(self._part_came, self._part_goes)
        else:
            lay_out_for_gpu(bundle.unet)
            self._ready(bundle.vae)
        self.conditioner = Conditioner(bundle)
        self.one_by_one = self.device.type == "cpu"
        """Whether every picture goes through the network alone, whatever the batch size; see the seed contract."""
        self.makes_room = True
        """Whether a CPU that others use too is given fewer threads (`kernels/crowding.py`)."""
        self.vae: VAEUse | None = None
        """What stands in the place of the model's own VAE (`use_vae`)."""
        self.vae_tiling: Tiling = "auto"
        """Whether the autoencoder works in tiles (`tiling.py`); auto is for pictures that are too large otherwise."""

    @classmethod
    def load(
        cls,
        folder: Path | str | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        fast: bool = True,
        int8: bool = False,
        low_memory: bool = False,
        compile: bool = False,
        remembered: bool = True,
    ) -> TextToImage:
        """Open a model folder or a single .safetensors file, the embedded model if None.

        `int8` draws with 8-bit integers on a CPU, another picture. `low_memory` keeps one network in memory at a time
        (`low_memory.py`). `compile` draws on a GPU by torch.compile: the first picture of a size takes a minute or
        more, the others less time. `remembered` False hashes the model's files for the fingerprint whether or not they
        have changed since the last time.
        `dtype` auto is float16 on an NVIDIA GPU; on a CPU that has bfloat16 it is that, unless `fast` is False, else
        float32. Raises ModelNotFoundError or ModelLoadError for the model, InputError for a device, `dtype`, `int8` or
        `compile` that is not there.
        """
        folder = embedded_model_path() if folder is None else Path(folder)
        chosen = choose_device(device)
        precision = choose_dtype(dtype, chosen, fast=fast)
        if compile:
            check_can_compile(chosen, low_memory=low_memory)
        expect_others()
        with room_for_others() if chosen.type == "cpu" else nullcontext():
            bundle = (OnDemandBundle if low_memory else load_model)(folder, device=chosen, dtype=precision)
            bundle.fingerprint(remembered=remembered)
            return cls(bundle, fast=fast, int8=int8, compile=compile)

    def add_lora(self, path: Path | str, *, scale: float = 1.0) -> LoRAUse:
        """Read a LoRA file, kohya's or diffusers'; what is given back goes into a request's `loras`.

        Raises ModelNotFoundError or ModelLoadError if it cannot be read or was made for another model.
        """
        return self.adapters.add(Path(path), scale=scale)

    def add_embedding(self, path: Path | str) -> EmbeddingUse:
        """Read a textual inversion; what is given back goes into a request's `embeddings`, its name into the prompt.

        Raises ModelNotFoundError or ModelLoadError if it cannot be read or was made for another text encoder.
        """
        return self.conditioner.add_embedding(Path(path))

    def use_vae(self, path: Path | str) -> None:
        """Draw with the VAE of a file or folder from now on. `fingerprint` stays the model's own.

        Raises ModelNotFoundError or ModelLoadError if it cannot be read or its latents are not those of the model.
        """
        path, bundle = Path(path), self.bundle
        config = read_other_vae(path, bundle.config)
        bundle.vae = self._ready(load_vae(path, device=self.device, dtype=self.dtype))
        bundle.config = replace(bundle.config, vae=config)
        self.latent_space = LatentSpace.from_config(config)
        self.vae = VAEUse(other_vae_name(path), other_vae_fingerprint(path))

    def draw(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        count: int = 1,
        init_image: GivenPicture | None = None,
        mask: GivenPicture | None = None,
        strength: float | None = None,
        pictures: Mapping[str, NDArray[np.uint8]] | None = None,
        **given: Unpack[RequestFields],
    ) -> Iterator[GenerationResult]:
        """Pictures of one prompt with seeds seed, seed + 1, ...; what is not `given` is the model's default.

        `seed` None is a random one, which the results have. `init_image`, `mask` and `strength` are the command line's,
        and so is the size that follows from them; `pictures` are what `init` names instead, as for `generate`.
        """
        config, first = self.bundle.config, random_seed(count) if seed is None else seed
        given = _in_our_words(given, config)
        given, pictures = start_from(config, given, pictures, init_image=init_image, mask=mask, strength=strength)
        requests = [complete_request(config, prompt=prompt, seed=first + i, **given) for i in range(count)]
        return self.generate(requests, pictures=pictures)

    def steps(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        init_image: GivenPicture | None = None,
        mask: GivenPicture | None = None,
        strength: float | None = None,
        pictures: Mapping[str, NDArray[np.uint8]] | None = None,
        **given: Unpack[RequestFields],
    ) -> Drawing[GenerationResult]:
        """One picture to be watched: iterate over its steps, then take the `result`, the same as `draw` gives."""
        config = self.bundle.config
        given = _in_our_words(given, config)
        given, found = start_from(config, given, pictures, init_image=init_image, mask=mask, strength=strength)
        request = complete_request(config, prompt=prompt, seed=random_seed() if seed is None else seed, **given)
        return Drawing(lambda on_step: next(self.generate([request], pictures=found, on_step=on_step)))

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        pictures: Mapping[str, NDArray[np.uint8]] | None = None,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
        on_failure: OnFailure | None = None,
    ) -> Iterator[GenerationResult]:
        """Draw requests in order; each picture is given out as soon as it is decoded.

        `pictures` are what requests start from, by the hash they name: RGB bytes (H, W, 3) and masks (H, W).
        `batch_size` is how many go through a GPU together: it changes speed and memory, never the noise, but it may
        change the last bit of the arithmetic. A CPU, which gains little from more, draws them one by one. `on_step`
        sees every sampler step of every batch. A picture whose numbers are not finite raises RuntimeFailure, or with
        `on_failure` is told to it and left out.
        Raises InputError before anything is drawn if one of the requests does not fit this model.
        """
        init = InitPictures(pictures or {}, self._encode, self.latent_space.downscale)
        for request in requests:
            self._check(request)
            init.check(request)
        size = GPU_BATCH_SIZE if batch_size is None else batch_size
        if not 1 <= size <= MAX_BATCH_SIZE:
            raise InputError(f"batch size {size} must lie between 1 and {MAX_BATCH_SIZE}")
        batches = _batches(requests, 1 if self.one_by_one else size, self.conditioner.chunks)
        return self._generate(batches, init, on_step, on_failure)

    def _generate(
        self,
        batches: Sequence[Sequence[GenerationRequest]],
        init: InitPictures,
        on_step: OnStep | None,
        on_failure: OnFailure | None,
    ) -> Iterator[GenerationResult]:
        places = self._places(batches)
        for batch in batches:
            started = time.perf_counter()
            size = places.get(_walk(batch[0]), len(batch))
            self.adapters.use(batch[0].loras)
            with self._room_for_others():
                conditioning = self.conditioner.encode(batch)
                encoded = time.perf_counter()
                latents, failures = self._denoise(batch, conditioning, init, on_step, size)
            denoised = time.perf_counter()
            for k, request in enumerate(batch):
                begun = time.perf_counter()
                try:
                    with self._room_for_others():
                        pixels = self._decode(latents[k : k + 1], failures[k])
                    if (canvas := init.canvas(request)) is not None:
                        pixels = canvas.finish(pixels)
                except RuntimeFailure as failure:
                    if on_failure is None:
                        raise
                    on_failure(request, failure)
                    continue
                timings = Timings(
                    (encoded - started) / len(batch), (denoised - encoded) / len(batch), time.perf_counter() - begun
                )
                yield GenerationResult(pixels, self._metadata(request, pixels, size), timings)

    def _room_for_others(self) -> AbstractContextManager[None]:
        """For what computes on a CPU, whose cores may be wanted by other processes too, and is exact on any of them."""
        exact = self.fast_form.ignores_threads or (
            self.dtype == torch.float32 and torch.get_num_threads() <= EXACT_THREADS
        )
        makes_room = self.makes_room and exact and self.device.type == "cpu" and not self.compiled
        return room_for_others() if makes_room else nullcontext()

    def _places(self, batches: Sequence[Sequence[GenerationRequest]]) -> dict[object, int]:
        """How many pictures the U-Net is given of each kind (`_walk`): a compiled one those of the fullest batch."""
        places: dict[object, int] = {}
        for batch in batches if self.compiled else ():
            kind = _walk(batch[0])
            places[kind] = max(len(batch), places.get(kind, 0))
        return places

    def _check(self, request: GenerationRequest) -> None:
        config = self.bundle.config
        check_fits(request, config)
        self.conditioner.check(request)
        self.adapters.check(request)
        if request.sampler not in SAMPLERS:
            raise InputError(f"no such sampler: {request.sampler!r}", hint=f"choose from {', '.join(SAMPLERS)}")
        if request.schedule not in SCHEDULES:
            raise InputError(f"no such schedule: {request.schedule!r}", hint=f"choose from {', '.join(SCHEDULES)}")
        check_passes(request, config.size_multiple_px)
        if config.unet.in_channels != config.vae.latent_channels and not self._takes_mask:
            raise InputError(
                f"{self.name} is not a text-to-image model: its U-Net takes {config.unet.in_channels} channels, "
                f"the latents have {config.vae.latent_channels}"
            )

    @property
    def _takes_mask(self) -> bool:
        """Whether the U-Net is one for inpainting, which sees the mask and what is kept beside the latents."""
        config = self.bundle.config
        return config.unet.in_channels == 2 * config.vae.latent_channels + 1

    @torch.inference_mode()
    def _denoise(
        self,
        batch: Sequence[GenerationRequest],
        conditioning: Conditioning,
        init: InitPictures,
        on_step: OnStep | None,
        places: int,
    ) -> tuple[Tensor, list[RuntimeFailure | None]]:
        """Latents (B, C, h, w) float32 after every pass, and for each picture what went wrong, if anything.

        places: how many pictures the U-Net is given, at least B.
        """
        request = batch[0]  # alike in all that the sampler looks at, see _batches
        source = NoiseSource([each.seed for each in batch], request.rng)
        start = self._start(batch, source, init)
        latents, failures = self._sample(request, start, source, conditioning, on_step, places)
        if request.hires is None:
            return latents, failures
        start = self._start_again(request, latents, failures, source, init)
        latents, later = self._sample(request, start, source, conditioning, on_step, places)
        return latents, [first or second for first, second in zip(failures, later, strict=True)]

    def _start(self, batch: Sequence[GenerationRequest], source: NoiseSource, init: InitPictures) -> Start:
        """Where a batch begins: in noise, or in the pictures its requests name."""
        request = batch[0]
        sigmas = self.schedule.inference_sigmas(request.steps, request.schedule)
        width, height = request.width_px, request.height_px
        extra = None
        if self._takes_mask:
            extra = torch.cat([init.extra(each.init, width, height) for each in batch])
        if request.init is None:
            return start_from_noise(sigmas, source, self.latent_space.shape(height, width), extra=extra)
        latents = torch.cat([init.latents(each) for each in batch])
        redrawn = None
        if keeps_pixels(request.init) and not self._takes_mask:
            redrawn = torch.cat([init.redrawn_cells(each) for each in batch]).to(latents.device)
        return start_from_picture(sigmas, source, latents, request.init.strength, redrawn=redrawn, extra=extra)

    def _start_again(
        self,
        request: GenerationRequest,
        latents: Tensor,
        failures: list[RuntimeFailure | None],
        source: NoiseSource,
        init: InitPictures,
    ) -> Start:
        """Where the second pass begins: in the enlarged pictures of the first, with noise from where that left off.

        `failures` gets what cannot be decoded; such a picture goes on as an empty one, so that the others do.
        """
        assert request.hires is not None, "there is no second pass"
        width, height = hires_size(request, self.bundle.config.size_multiple_px)
        larger = latents.new_zeros((len(latents), *self.latent_space.shape(height, width)))
        for k in range(len(latents)):
            try:
                pixels = self._decode(latents[k : k + 1], failures[k])
                larger[k] = self._encode(as_tensor(enlarge(pixels, width, height)))[0]
            except RuntimeFailure as failure:
                failures[k] = failure
        sigmas = self.schedule.inference_sigmas(request.steps, request.schedule)
        extra = init.extra(None, width, height).expand(len(latents), -1, -1, -1) if self._takes_mask else None
        return start_from_picture(sigmas, source, larger, request.hires.strength, extra=extra)

    def _sample(
        self,
        request: GenerationRequest,
        start: Start,
        source: NoiseSource,
        conditioning: Conditioning,
        on_step: OnStep | None,
        places: int,
    ) -> tuple[Tensor, list[RuntimeFailure | None]]:
        """One pass of the sampler: latents (B, C, h, w) float32, and for each picture what went wrong, if anything."""
        c, h, w = start.x.shape[1:]
        unet = self.bundle.unet
        self.fast_form.take_up()
        deep_cache = None if request.deep_cache == 1 else DeepCache(request.deep_cache)
        guided = GuidedDenoiser(
            Network(
                unet,
                start.extra,
                channels_last=self.fast_form.is_taken_up or wants_channels_last(self.device, self.dtype),
                computes_once=self.fast_form.ignores_batch,
                deep_cache=deep_cache,
                one_by_one=self.low_memory and not self.one_by_one,
                compiled=self.compiled,
                places=(len(start.x), places),
            ),
            self.schedule,
            self.bundle.config.diffusion.prediction_type,
            conditioning.cond,
            conditioning.uncond,
            request.guidance,
            rescale=request.guidance_rescale,
            interval=guided_sigmas(start.sigmas, *request.guidance_interval),
        )
        denoiser = start.constrain(guided)
        if deep_cache is not None:
            denoiser = CachingDenoiser(denoiser, deep_cache)
        finite: list[Tensor] = []

        def watch(step: Step) -> None:
            # Kept on the device and looked at once at the end: a look at every step would stall a GPU.
            finite.append(torch.isfinite(step.denoised).flatten(1).all(dim=1))
            if on_step is not None:
                on_step(step)

        sampler = get_sampler(request.sampler)
        if SAMPLERS[request.sampler].accepts_eta:
            sampler = partial(cast("Callable[..., Tensor]", sampler), eta=request.eta)
        latents = sampler(
            denoiser,
            start.x.to(self.device),
            start.sigmas,
            noise=lambda: source.draw((c, h, w)).to(self.device, non_blocking=may_run_ahead(self.device)),
            on_step=watch,
        )
        by_picture = torch.stack(finite).T.tolist()
        return latents, [self._failure(flags) for flags in by_picture]

    def _part_came(self, part: Part, network: nn.Module) -> None:
        """A network was read again: with the LoRAs in use, and in the form that draws."""
        if isinstance(network, UNet):
            lay_out_for_gpu(network)
            self.fast_form.exchange(network)
        elif isinstance(network, AutoencoderKL):
            self._ready(network)
        if part != "vae":
            self.adapters.merge_into(part, network)

    def _ready(self, vae: AutoencoderKL) -> AutoencoderKL:
        """The autoencoder, in the form in which it is used."""
        if self._fast:
            speed_up_vae(vae)
        lay_out_for_gpu(vae)
        return vae

    def _part_goes(self, part: Part) -> None:
        if part == "unet":
            self.fast_form.exchange(None)

    def _failure(self, finite: list[bool]) -> RuntimeFailure | None:
        """What to say of a picture whose estimates were finite at these steps; None if all were."""
        if all(finite):
            return None
        hint = None if self.dtype == torch.float32 else "--dtype float32 computes with a larger range"
        return RuntimeFailure(
            f"the latents are not finite from step {finite.index(False) + 1} of {len(finite)} on", hint=hint
        )

    def _decode(self, latents: Tensor, failure: RuntimeFailure | None) -> Pixels:
        """Pixels of one picture's latents (1, C, h, w). Raises `failure` if they are not worth it."""
        if failure is not None:
            raise failure
        whole = decode_compiled if self.compiled else None
        return decode(self.bundle.vae, self.latent_space, latents, self.vae_tiling, whole=whole)

    def _encode(self, pixels: Tensor) -> Tensor:
        """Latents (1, C, h, w) of one picture (1, 3, H, W)."""
        return encode(self.bundle.vae, self.latent_space, pixels, self.vae_tiling)

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
                vae_tiling=self.vae_tiling,
                kernels=COMPILED if self.compiled else self.fast_form.kernels,
            ),
            vae=self.vae,
        )


def _in_our_words(given: RequestFields, config: ModelConfig) -> RequestFields:
    """Sampler and schedule by their own names, as the command line understands them."""
    sampler, schedule = resolve_sampling(given.get("sampler"), given.get("schedule"), config)
    return {**given, "sampler": sampler, "schedule": schedule}


def _batches(
    requests: Sequence[GenerationRequest], size: int, chunks: Callable[[GenerationRequest], int]
) -> list[list[GenerationRequest]]:
    """Neighbours that differ in prompt, seed and the pictures they start from only, at most `size` together.

    Their contexts are equally long: one that was filled up for a longer neighbour would give another picture.
    """
    batches: list[list[GenerationRequest]] = []
    kind = None
    for request in requests:
        before, kind = kind, (_walk(request), chunks(request))
        if kind == before and len(batches[-1]) < size:
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
        request.guidance_rescale,
        request.guidance_interval,
        request.deep_cache,
        request.sampler,
        request.schedule,
        request.eta,
        request.loras,
        None if request.init is None else (request.init.strength, keeps_pixels(request.init)),
        request.hires,
        request.rng,
    )
