"""LoRAs of a loaded model: added once, merged into its weights for the pictures that are drawn with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from latentgen.checkpoints.folder import FINGERPRINT_DIGITS, ModelBundle
from latentgen.checkpoints.hashes import sha256
from latentgen.checkpoints.lora import LoadReport, LoRAWeights, match_lora, merged_weight, read_lora
from latentgen.errors import InputError
from latentgen.models.lora import Layer, LowRankUpdate, layers_in, layers_of
from latentgen.pipeline.low_memory import OnDemandBundle
from latentgen.prompts.syntax import parse_prompt
from latentgen.request import GenerationRequest, LoRAUse, RequestError


class Adapters:
    """The LoRAs that a model can be drawn with, and the ones that are in its weights now.

    Merged weights cost nothing while drawing. Only layers that a LoRA changes are kept as they were, on the CPU, so
    taking it out again is exact to the bit.
    """

    def __init__(self, bundle: ModelBundle, before_change: Callable[[], None] = lambda: None) -> None:
        """before_change: called before weights are looked at or changed, to put them where they belong."""
        self.bundle, self._before_change = bundle, before_change
        self._files: dict[str, tuple[LoRAWeights, LoadReport]] = {}
        self._merged: tuple[LoRAUse, ...] = ()
        self._originals: dict[str, Tensor] | None = {}
        """Weights of the layers that `_merged` changes, without it; None after `use_for_good`."""

    def add(self, path: Path, *, scale: float = 1.0) -> LoRAUse:
        """Read a LoRA, so that requests may hold it; what they call it. Nothing is merged yet.

        Raises ModelNotFoundError or ModelLoadError if it cannot be read or was made for another model.
        """
        lora = read_lora(path)
        report = match_lora(self.bundle.outline(), lora)
        use = LoRAUse(name=path.stem, fingerprint=sha256(path, remembered=True)[:FINGERPRINT_DIGITS], scale=scale)
        self._files[use.fingerprint] = (lora, report)
        return use

    def report(self, use: LoRAUse) -> LoadReport:
        """How many of a LoRA's modules the model has."""
        return self._files[use.fingerprint][1]

    def forget(self, fingerprint: str) -> None:
        """Let go of a LoRA that was added; requests may not hold it any more."""
        if any(use.fingerprint == fingerprint for use in self._merged):
            self.use(())
        del self._files[fingerprint]

    def check(self, request: GenerationRequest) -> None:
        """Raise InputError for a LoRA that was not added, and for a tag in the prompt that stands for none of them."""
        for use in request.loras:
            if use.fingerprint not in self._files:
                raise InputError(f"the LoRA {use.name} ({use.fingerprint}) is not loaded", hint="add_lora(path) first")
        if self._originals is None and request.loras != self._merged:
            raise InputError("the LoRAs were merged for good", hint="load the model again to draw with others")
        named = {use.name for use in request.loras}
        for field, text in (("prompt", request.prompt), ("negative-prompt", request.negative_prompt)):
            for tag in parse_prompt(text).loras:
                if field == "negative-prompt" or tag.name not in named:
                    problem = f"holds <lora:{tag.name}>, which no LoRA of the request stands for"
                    raise RequestError(field, problem, hint="loras=(model.add_lora(path, scale=...),)")

    def use(self, loras: tuple[LoRAUse, ...]) -> None:
        """Make the model's weights those of `loras`, exactly; several add up in their order."""
        if loras == self._merged:
            return
        assert self._originals is not None, "`check` refuses other LoRAs after use_for_good"
        if isinstance(self.bundle, OnDemandBundle):
            self._merged = loras
            self.bundle.read_anew()  # and `merge_into` what is read
            return
        self._before_change()
        self._take_out(self._originals)
        try:
            self._merge(loras, self._originals, self._layers())
        except BaseException:
            self._take_out(self._originals)
            raise
        self._merged = loras

    def use_for_good(self, loras: tuple[LoRAUse, ...]) -> None:
        """As `use`, without keeping what the weights were before: no other LoRAs can be used afterwards."""
        if isinstance(self.bundle, OnDemandBundle):
            self.use(loras)
        else:
            self.use(())
            self._before_change()
            self._merge(loras, None, self._layers())
            self._merged = loras
        self._originals = None

    def merge_into(self, part: str, network: nn.Module) -> None:
        """Put the LoRAs in use into one part, "unet" or "text_encoder", that has just been read."""
        self._merge(self._merged, None, layers_in(part, network))

    @torch.no_grad()
    def _merge(
        self, loras: Sequence[LoRAUse], originals: dict[str, Tensor] | None, layers: Mapping[str, Layer]
    ) -> None:
        updates: dict[str, list[tuple[LowRankUpdate, float]]] = {}
        for use in loras:
            for name, update in self._files[use.fingerprint][0].modules.items():
                if name in layers:
                    updates.setdefault(name, []).append((update, use.scale))
        for name, scaled in updates.items():
            weight = layers[name].weight
            if originals is not None:
                originals[name] = weight.detach().to("cpu", copy=True)
            weight.copy_(merged_weight(weight, scaled))

    def _layers(self) -> dict[str, Layer]:
        return layers_of(self.bundle.unet, self.bundle.text_encoder)

    @torch.no_grad()
    def _take_out(self, originals: dict[str, Tensor]) -> None:
        layers = self._layers()
        for name, original in originals.items():
            layers[name].weight.copy_(original)
        originals.clear()
        self._merged = ()
