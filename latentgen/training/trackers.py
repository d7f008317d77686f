"""Where a run is shown besides its own log: TensorBoard's event files."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

NOT_CURVES = frozenset({"step", "elapsed_s", "validation", "failed"})
"""Of a log line: what is no figure over the steps."""


class TensorBoard:
    """Scalars and sample sheets in OUT/tensorboard: give an instance as a run's `report`.

    A resumed run goes on in a file of its own; once it makes a step, what an earlier start wrote after the checkpoint
    it resumed from counts no more (TensorBoard's `purge_step`). The disk's refusal ends the tracking with a warning,
    never the training.
    """

    def __init__(self, folder: Path, samples: Path) -> None:
        self.folder, self.samples = folder, samples
        self._writer: SummaryWriter | None = None
        self._refused = False
        self._begun_at: int | None = None
        """The step of a start after which none was made yet."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        if not self._refused:
            with self._forgiving():
                self._take(event)

    def close(self) -> None:
        """Write out what is still held back."""
        if self._writer is not None and not self._refused:
            with self._forgiving():
                self._writer.close()

    @contextmanager
    def _forgiving(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self._refused = True
            logger.warning("%s cannot be written, and is left as it is: %s", self.folder, error.strerror or error)

    def _take(self, event: Mapping[str, Any]) -> None:
        step: int = event["step"]
        if event.get("start"):
            self._begun_at = step
            return
        if self._begun_at is not None and step > self._begun_at:
            self._open(purge_step=self._begun_at + 1)
            self._begun_at = None
        writer = self._writer or self._open()
        if event.get("told") == "samples":
            self._add_sheet(writer, step)
        elif event.get("told") == "checkpoint":
            writer.flush()
        elif "told" not in event:
            group = "validation" if event.get("validation") else "training"
            for name, value in event.items():
                if name not in NOT_CURVES and isinstance(value, int | float):
                    writer.add_scalar(f"{group}/{name}", value, step)

    def _open(self, purge_step: int | None = None) -> SummaryWriter:
        """A file of its own. purge_step: what was written of this step and later ones, before, is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(str(self.folder), purge_step=purge_step)
        return self._writer

    def _add_sheet(self, writer: SummaryWriter, step: int) -> None:
        sheet = self.samples / f"step_{step:08d}.png"
        if sheet.exists():
            import numpy as np
            from PIL import Image

            with Image.open(sheet) as picture:
                writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
