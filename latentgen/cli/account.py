"""What a picture's file says of how it was drawn, as `generate` is told it: for `generate --from`, and for `replay` of
other tools' pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from latentgen.cli.foreign import flags_of, foreign_flags
from latentgen.cli.model_names import EMBEDDED, installed_models, resolve_model
from latentgen.cli.plan import Flags
from latentgen.errors import InputError, ModelNotFoundError
from latentgen.images.foreign import NamedFiles, NamedLoRA, StartingPicture
from latentgen.prompts.syntax import parse_prompt
from latentgen.request import InitPicture, RequestError

if TYPE_CHECKING:
    from latentgen.checkpoints.textual_inversion import EmbeddingFile
    from latentgen.cli.add_ons import AddOns
    from latentgen.cli.console import Console
    from latentgen.images.files import PictureText
    from latentgen.images.foreign import ForeignMetadata
    from latentgen.images.metadata import PictureMetadata


@dataclass(frozen=True, slots=True)
class Account:
    """How a picture was drawn, by its own file."""

    picture: Path
    tool: str
    prompt: str
    """Without LoRA tags, whose LoRAs are in `named`."""
    flags: Flags
    """Without those of files."""
    named: NamedFiles
    remarks: list[str]
    """What is not taken over, each with its reason; files that are not given come to it."""
    folder: Path
    """The model's: as asked for, else of a picture of ours the one of its name, else the embedded one."""

    def flags_with(self, init_image: Path | None = None, mask: Path | None = None) -> Flags:
        """The flags with these files, used as the picture's were."""
        flags, start = self.flags, self.named.start
        if start is not None and init_image is not None:
            was_edged = start.is_masked or any(start.outpaint)  # without an edge its blur says nothing
            is_edged = mask is not None or any(start.outpaint)
            flags = replace(
                flags,
                strength=start.strength,
                invert_mask=start.invert_mask and mask is not None,
                mask_blur=start.mask_blur_px if was_edged and is_edged else None,
                outpaint=start.outpaint if any(start.outpaint) else None,
            )
        return replace(flags, init_image=init_image, mask=mask)

    def left_out(
        self, add_ons: AddOns, embeddings: Sequence[EmbeddingFile], init_image: Path | None, mask: Path | None
    ) -> list[str]:
        """What is not as there with these files."""
        missing = self.named.missing(
            loras=add_ons.loras.given,
            embeddings=[file.name for file in embeddings],
            vae=add_ons.vae is not None,
            init_image=init_image is not None,
            mask=mask is not None,
        )
        return [*self.remarks, *missing]

    def tell(self, console: Console, left_out: Sequence[str]) -> None:
        console.note(f"{self.picture}: drawn by {self.tool}; not as there:")
        for each in left_out:
            console.note(f"  {each}")


def read_account(picture: Path, model: str | None) -> Account:
    """Raises InputError if the picture carries no settings, ModelNotFoundError if its model is not here."""
    from latentgen.images.files import read_picture_text
    from latentgen.images.metadata import PictureMetadata

    text = read_picture_text(picture)[2]
    if text.document is None:
        return foreign_account(picture, read_foreign_text(picture, text), model)
    recorded = PictureMetadata.from_json(text.document)
    request = recorded.request
    named = NamedFiles(
        loras=tuple(NamedLoRA(use.name, use.scale) for use in request.loras),
        embeddings=tuple(use.name for use in request.embeddings),
        vae=None if recorded.vae is None else recorded.vae.name,
        start=None if request.init is None else _start(request.init),
    )
    prompt = parse_prompt(request.prompt).text.strip()
    return Account(picture, "latentgen", prompt, flags_of(request), named, [], recorded_model(recorded, model))


def foreign_account(picture: Path, foreign: ForeignMetadata, model: str | None) -> Account:
    """Of another tool's picture. Raises InputError if its prompt cannot be drawn."""
    from latentgen.cli.drawable import read_drawable

    folder = resolve_model(model)
    try:
        prompt, flags, remarks = foreign_flags(foreign, read_drawable(folder))
    except RequestError as error:
        raise InputError(f"{picture}: its {error.message}", hint=error.hint) from None
    if foreign.model is not None:
        remarks.insert(0, f"model {foreign.model}: {model or EMBEDDED} draws it here")
    return Account(picture, foreign.tool, prompt, flags, foreign.named, remarks, folder)


def read_foreign_text(picture: Path, text: PictureText) -> ForeignMetadata:
    """Another tool's account. Raises InputError if there is none that is read here."""
    from latentgen.images.foreign import read_foreign

    foreign = read_foreign(text)
    if foreign is None:
        raise InputError(
            f"{picture} does not carry settings that latentgen reads", hint=f"see: latentgen info {quote(str(picture))}"
        )
    return foreign


def recorded_model(recorded: PictureMetadata, model: str | None) -> Path:
    """The model's folder: as given, or by the name in the file if such a model is installed."""
    if model is not None:
        return resolve_model(model)
    if recorded.model not in installed_models():
        raise ModelNotFoundError(
            f"the picture was drawn with {recorded.model} ({recorded.fingerprint[:10]}), a model that is not installed",
            hint="name its folder with --model",
        )
    return resolve_model(recorded.model)


def _start(init: InitPicture) -> StartingPicture:
    return StartingPicture(
        strength=init.strength,
        is_masked=init.mask_sha256 is not None,
        mask_blur_px=init.mask_blur_px,
        invert_mask=init.invert_mask,
        outpaint=init.outpaint,
    )
