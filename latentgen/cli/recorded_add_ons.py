"""What a picture was drawn with beside the model: found again by name, and if it is ours known by its fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.checkpoints.other_vae import other_vae_fingerprint
from latentgen.checkpoints.textual_inversion import look_at_embedding
from latentgen.cli.add_ons import LoRAFiles
from latentgen.errors import InputError

if TYPE_CHECKING:
    from latentgen.images.foreign import NamedFiles
    from latentgen.images.metadata import PictureMetadata
    from latentgen.pipeline import TextToImage


@dataclass(frozen=True, slots=True)
class RecordedAddOns:
    """The files of a picture's LoRAs, textual inversions and VAE."""

    loras: tuple[Path, ...]
    embeddings: tuple[Path, ...]
    vae: Path | None

    @classmethod
    def find(
        cls, recorded: PictureMetadata, loras: Sequence[str], embeddings: Sequence[Path], vae: Path | None
    ) -> RecordedAddOns:
        """Files from those given, and for LoRAs from the folder of LoRAs.

        Raises InputError for one that is missing, has other contents than the picture was drawn with, or is given for
        nothing.
        """
        request, files = recorded.request, LoRAFiles.find(loras)
        # The file that a picture was drawn with is that under any name.
        same = {file.use.fingerprint: file for file in files.given.values()}
        recognised = {file.use.name for use in request.loras if (file := same.get(use.fingerprint)) is not None}
        check_used("--lora", files.given, [*recognised, *(use.name for use in request.loras)])
        given = {file.use.name: file for file in map(look_at_embedding, embeddings)}
        check_used("--embedding", given, [use.name for use in request.embeddings])
        found: list[Path] = []
        for use in request.loras:
            file = same.get(use.fingerprint) or files.named(use.name)
            _check_same("--lora", use.name, use.fingerprint, file.use.fingerprint)
            found.append(file.path)
        for use in request.embeddings:
            if use.name not in given:
                raise InputError(f"it was drawn with the embedding {use.name}", hint="give its file with --embedding")
            _check_same("--embedding", use.name, use.fingerprint, given[use.name].use.fingerprint)
        if vae is not None and recorded.vae is None:
            raise InputError(f"--vae {vae}: this picture was drawn with the model's own")
        if recorded.vae is not None:
            if vae is None:
                raise InputError(f"it was drawn with the VAE {recorded.vae.name}", hint="give its file with --vae")
            _check_same("--vae", recorded.vae.name, recorded.vae.fingerprint, other_vae_fingerprint(vae))
        return cls(tuple(found), tuple(given[use.name].path for use in request.embeddings), vae)

    def add_to(self, pipeline: TextToImage) -> None:
        """Load them. Raises ModelLoadError if one of them does not fit the model."""
        if self.vae is not None:
            pipeline.use_vae(self.vae)
        for path in self.loras:
            pipeline.add_lora(path)
        for path in self.embeddings:
            pipeline.add_embedding(path)


def check_named(named: NamedFiles, init_image: Path | None, mask: Path | None, vae: Path | None) -> None:
    """Raise InputError for what is given and another tool's picture was drawn without."""
    start = named.start
    has_mask = start is not None and start.is_masked is not False
    for flag, path, is_named in (("--init-image", init_image, start is not None), ("--mask", mask, has_mask)):
        if path is not None and not is_named:
            raise InputError(f"{flag} {path}: this picture was drawn without one")
    if vae is not None and named.vae is None:
        raise InputError(f"--vae {vae}: this picture was drawn with the model's own")


def check_used(flag: str, given: Iterable[str], wanted: Sequence[str]) -> None:
    """Raise InputError for a name that is given and not wanted."""
    for name in given:
        if name not in wanted:
            raise InputError(f"{flag} {name}: this picture was drawn without it")


def _check_same(flag: str, name: str, recorded: str, found: str) -> None:
    if found != recorded:
        raise InputError(
            f"{flag} {name} is not what it was drawn with: its SHA-256 begins with {found}, not {recorded}"
        )
