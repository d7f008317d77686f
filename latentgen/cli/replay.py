"""`latentgen replay`: draw a picture again from its file alone, and say whether it came out the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from latentgen import __version__
from latentgen.cli import options
from latentgen.cli.account import Account, foreign_account, read_foreign_text, recorded_model
from latentgen.cli.add_ons import AddOnOptions, AddOns
from latentgen.cli.console import Console
from latentgen.cli.drawable import read_drawable
from latentgen.cli.embeddings import load_embeddings, look_at_embeddings, with_embeddings
from latentgen.cli.init_pictures import InitFiles, pass_notes
from latentgen.cli.loading import load_model
from latentgen.cli.output import PictureFiles
from latentgen.cli.plan import Entry, plan_requests
from latentgen.cli.prompt_syntax import Embeddings, tell_of_prompts, unsupported_syntax
from latentgen.cli.recorded_add_ons import RecordedAddOns, check_named, check_used
from latentgen.cli.seen_words import tell_of_unseen_words
from latentgen.cli.wildcards import Wildcards
from latentgen.errors import InputError, RuntimeFailure
from latentgen.prompts.syntax import parse_prompt
from latentgen.request import GenerationRequest, InitPicture

THREADS_PER_CORE = 4
"""At most so many of a file's threads are started; a number of the user's own is taken as it is."""

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latentgen.checkpoints.textual_inversion import EmbeddingFile
    from latentgen.images.metadata import Computation, PictureMetadata
    from latentgen.images.pixels import Pixels
    from latentgen.pipeline.tiling import Tiling


def replay(
    picture: options.PicturePath,
    verify: Annotated[bool, typer.Option("--verify", help="Compare only: write no picture.")] = False,
    init_image: Annotated[
        Path | None, typer.Option("--init-image", "-i", metavar="FILE", help="The picture that it was drawn from.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", metavar="FILE", help="The mask that it was drawn with, or 'alpha'.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="FILE", help="The file of a LoRA it was drawn with. May be repeated."),
    ] = None,
    embedding: Embeddings = None,
    vae: Annotated[
        Path | None, typer.Option("--vae", metavar="FILE|FOLDER", help="The VAE it was drawn with, if not the model's.")
    ] = None,
    model: options.Model = None,
    output: options.Output = None,
    format: options.Format = None,
    overwrite: options.Overwrite = False,
    no_metadata: options.NoMetadata = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw a picture again from its file alone; exit code 1 if it differs.

    What is not given is taken from the file: model, dtype, device, threads and batch size too. A picture of another
    tool (A1111, ComfyUI, InvokeAI, mflux ...) is drawn as far as its settings and the given files go; what was left out
    is listed.

    latentgen replay outputs/2026-01-31-00001-42.png --verify

    latentgen replay found.png --model my-model/ --output again.png
    """
    console = Console(quiet, verbose)
    from latentgen.images.files import read_picture, read_picture_text
    from latentgen.images.metadata import COMPILED, PictureMetadata

    # Parse
    kind, _, text = read_picture_text(picture)
    if text.document is None:
        foreign = read_foreign_text(picture, text)
        if verify:
            raise InputError(
                f"--verify: {picture} was drawn by {foreign.tool}, whose pixels cannot be had to the bit",
                hint="without --verify it is drawn as far as its settings go",
            )
        account, init_files = foreign_account(picture, foreign, model), InitFiles()
        adding = AddOnOptions(lora=lora, vae=vae)
        request, others, embeddings = _plan(console, account, adding, embedding or (), init_image, mask, init_files)
        files = PictureFiles(output, format, overwrite=overwrite)
        files.check([request])
        pipeline, _ = load_model(account.folder, device=device, dtype=dtype, threads=threads)
        load_embeddings(console, pipeline, [request], embeddings)
        others.add_to(pipeline, [request], console)
        result = next(pipeline.generate([request], pictures=init_files))
        console.result(files.save(result.request, result.encode(files.format, with_metadata=not no_metadata)))
        return
    recorded = PictureMetadata.from_json(text.document)
    # Resolve
    folder = recorded_model(recorded, model)
    pictures = beginnings(recorded.request.init, init_image, mask)
    add_ons = RecordedAddOns.find(recorded, lora or (), embedding or (), vae)
    files = None if verify else PictureFiles(output, format, overwrite=overwrite)
    if files is not None:
        files.check([recorded.request])
    # Build
    recorded_device, recorded_dtype = _available(recorded.computation)
    device = recorded_device if device == "auto" else device
    pipeline, _ = load_model(
        folder,
        device=device,
        dtype=recorded_dtype if dtype == "auto" else dtype,
        threads=_threads(recorded.computation) if threads is None else threads,
        fast=recorded.computation.kernels != "none",
        int8=recorded.computation.kernels.endswith("int8") and _has_int8(device, dtype, recorded_dtype),
        compile=recorded.computation.kernels == COMPILED and device.startswith("cuda"),
        remembered=not verify,
    )
    add_ons.add_to(pipeline)
    pipeline.vae_tiling = cast("Tiling", recorded.computation.vae_tiling)
    # Run and save: a picture of a batch is drawn in one again, because the size of a batch decides the last bits.
    size = recorded.computation.batch_size
    result = next(pipeline.generate([recorded.request] * size, pictures=pictures, batch_size=size))
    if files is not None:
        console.result(files.save(result.request, result.encode(files.format, with_metadata=not no_metadata)))
    stored = read_picture(picture)[0] if kind == "PNG" else None  # the others lose a little when they are written
    verdict, is_same = compare(recorded, stored, result.metadata, result.pixels)
    if not is_same:
        raise RuntimeFailure(f"{picture}: {verdict}")
    console.note(f"{picture}: {verdict}")


def _plan(
    console: Console,
    account: Account,
    adding: AddOnOptions,
    embedding_paths: Sequence[Path],
    init_image: Path | None,
    mask: Path | None,
    init_files: InitFiles,
) -> tuple[GenerationRequest, AddOns, list[EmbeddingFile]]:
    """The request of another tool's picture with the files it was drawn with; what is left out is told. Nothing is
    loaded. Raises InputError for a file that it was drawn without.
    """
    named, config = account.named, read_drawable(account.folder)
    check_named(named, init_image, mask, adding.vae)
    add_ons, embeddings = AddOns.find(adding, config, named.scales), look_at_embeddings(embedding_paths, config)
    check_used(
        "--lora", add_ons.loras.given, [*named.scales, *(tag.name for tag in parse_prompt(account.prompt).loras)]
    )
    entry = Entry(account.prompt, account.flags_with(init_image, mask))
    planned = add_ons.with_loras(plan_requests([entry], config, Wildcards(literal=True), init_files))
    (request,) = requests = with_embeddings(planned, embeddings)
    check_used("--embedding", [file.name for file in embeddings], [use.name for use in request.embeddings])
    left_out = account.left_out(add_ons, embeddings, init_image, mask)
    if left_out or unsupported_syntax((request.prompt, request.negative_prompt)):
        account.tell(console, left_out)
    else:
        console.note(f"{account.picture}: drawn by {account.tool}; all of it is honoured")
    tell_of_prompts(console, requests, account.folder, embeddings, strict=False)
    tell_of_unseen_words(console, requests, account.folder, [file.name for file in embeddings])
    for note in [*init_files.notes, *pass_notes(requests, config)]:
        console.note(note)
    if account.flags.seed is None:
        console.note(f"seed {request.seed}")
    return request, add_ons, embeddings


def beginnings(init: InitPicture | None, init_image: Path | None, mask: Path | None) -> dict[str, NDArray[np.uint8]]:
    """The pictures a request starts from by their hashes, from the files given for them.

    Raises InputError if one is missing, is another picture than the request's, or is given for nothing.
    """
    wanted = {
        "--init-image": (init_image, None if init is None else init.sha256),
        "--mask": (mask, None if init is None else init.mask_sha256),
    }
    found: dict[str, NDArray[np.uint8]] = {}
    for flag, (path, sha256) in wanted.items():
        if sha256 is None and path is not None:
            raise InputError(f"{flag} {path}: this picture was drawn without one")
        if sha256 is None:
            continue
        if path is None:
            what = "a picture" if flag == "--init-image" else "a mask"
            raise InputError(
                f"it was drawn from {what} that its file only names: SHA-256 {sha256[:16]}…",
                hint=f"give it with {flag} FILE",
            )
        found[sha256] = _read_beginning(flag, path, init_image, sha256)
    return found


def _read_beginning(flag: str, path: Path, init_image: Path | None, sha256: str) -> NDArray[np.uint8]:
    from latentgen.images.inputs import read_alpha_mask, read_input, read_mask
    from latentgen.images.pixels import pixels_sha256

    if flag == "--init-image":
        pixels = read_input(path)
    elif str(path) == "alpha" and init_image is not None:
        pixels = read_alpha_mask(init_image)
    else:
        pixels = read_mask(path)
    if pixels_sha256(pixels) != sha256:
        raise InputError(
            f"{flag} {path} is not what it was drawn from: its pixels have the SHA-256 {pixels_sha256(pixels)[:16]}…, "
            f"not {sha256[:16]}…"
        )
    return pixels


def compare(
    recorded: PictureMetadata, stored: Pixels | None, drawn: PictureMetadata, pixels: Pixels
) -> tuple[str, bool]:
    """The verdict on a redrawn picture, and whether it is the same. `stored` are a PNG's pixels."""
    from latentgen.images.pixels import pixel_difference, pixels_sha256

    is_untouched = stored is None or pixels_sha256(stored) == recorded.pixels_sha256
    if drawn.pixels_sha256 == recorded.pixels_sha256:
        if is_untouched:
            return "bit-identical", True
        return "the picture is redrawn bit by bit, but the pixels in the file were changed after it was drawn", False
    causes = "; ".join(_causes(recorded, drawn)) or "none of what the file records differs"
    if not is_untouched:
        causes += "; and the pixels in the file were changed after it was drawn"
    if stored is None or stored.shape != pixels.shape:
        return f"the redrawn picture differs: {causes}", False
    largest, share = pixel_difference(stored, pixels)
    return f"the redrawn picture differs by up to {largest} of 255 in {share:.2%} of the bytes: {causes}", False


def _causes(recorded: PictureMetadata, drawn: PictureMetadata) -> list[str]:
    """What differs between the two computations, the likeliest cause first."""
    before, now = recorded.computation, drawn.computation
    pairs = [
        ("another model", recorded.fingerprint[:10], drawn.fingerprint[:10]),
        ("another VAE", _vae_name(recorded), _vae_name(drawn)),
        ("dtype", before.dtype, now.dtype),
        ("kernels", before.kernels, now.kernels),
        ("device", before.device, now.device),
        ("torch", before.torch, now.torch),
        ("CPU", before.cpu, now.cpu),
        ("batch size", before.batch_size, now.batch_size),
        ("threads", before.threads, now.threads),
        ("latentgen", recorded.version, __version__),
    ]
    return [f"{what} {old} then, {new} now" for what, old, new in pairs if old != new]


def _vae_name(metadata: PictureMetadata) -> str:
    return "the model's own" if metadata.vae is None else metadata.vae.fingerprint


def _has_int8(device: str, dtype: str, recorded_dtype: str) -> bool:
    """Whether this machine draws with 8-bit integers as the picture was drawn; if not, `compare` says what differs."""
    from latentgen.kernels.int8 import why_not_int8
    from latentgen.kernels.layers import why_no_onednn
    from latentgen.pipeline.devices import choose_device, choose_dtype

    chosen = choose_device(device)
    precision = choose_dtype(recorded_dtype if dtype == "auto" else dtype, chosen)
    is_fast = chosen.type == "cpu" and str(precision) == "torch.bfloat16"
    return is_fast and why_no_onednn() is None and why_not_int8() is None


def _threads(recorded: Computation) -> int:
    return min(recorded.threads, THREADS_PER_CORE * (os.cpu_count() or 1))


def _available(recorded: Computation) -> tuple[str, str]:
    """Device and dtype as recorded if this machine has such a device, else both as it is best at."""
    from latentgen.pipeline import present_devices

    is_here = any(present.split(":")[0] == recorded.device for present in present_devices())
    return (recorded.device, recorded.dtype) if is_here else ("auto", "auto")
