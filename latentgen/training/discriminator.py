"""The patch discriminator of train-vae, its hinge loss, and the adaptive weight that keeps it in proportion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.training.sizes import DISCRIMINATOR_LAYERS, DISCRIMINATOR_NORM_GROUPS, DISCRIMINATOR_WIDTH

ADAPTIVE_WEIGHT_LIMIT = 1e4
"""The adaptive weight is cut here, as in VQGAN's code, where the adversarial gradient all but vanishes."""
ADAPTIVE_WEIGHT_DELTA = 1e-6
"""delta of arXiv:2012.09841, eq. 7."""


class PatchDiscriminator(nn.Module):
    """Real or generated, for every patch by itself: 70 x 70 px with three strided layers.

    Source: pix2pix, arXiv:1611.07004, section 3.2.2 and appendix 6.1.2 (C64-C128-C256-C512), with GroupNorm in
    BatchNorm's place: what it says of a picture must not depend on the other pictures of the forward pass, or more
    processes and more accumulation would be other training.
    """

    def __init__(self, width: int = DISCRIMINATOR_WIDTH, layers: int = DISCRIMINATOR_LAYERS) -> None:
        """width: channels of the first layer; layers: those that halve the side."""
        super().__init__()
        self.width = width
        widths = [width * 2 ** min(level, 3) for level in range(layers + 1)]
        stages: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            stages += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(DISCRIMINATOR_NORM_GROUPS, widths[level]),
                nn.LeakyReLU(0.2),
            ]
        self.stages = nn.Sequential(*stages, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)  # pix2pix, appendix 6.2

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1, h, w): above 0 where a patch looks real."""
        return self.stages(pixels)


def hinge_loss(real: Tensor, generated: Tensor) -> Tensor:
    """The discriminator's loss on its verdicts (arXiv:1705.02894, eq. 3, halved as in VQGAN)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + generated).mean())


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """How much the adversarial loss counts: the ratio of both losses' gradients at the decoder's last layer.

    Source: VQGAN, arXiv:2012.09841, eq. 7. It is each forward pass's and each process's own, and a constant: no
    gradient flows through it.
    """
    wanted, had = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
        for loss in (reconstruction_loss, adversarial_loss)
    )
    return (wanted / (had + ADAPTIVE_WEIGHT_DELTA)).clamp(max=ADAPTIVE_WEIGHT_LIMIT).detach()
