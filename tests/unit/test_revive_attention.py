"""Heads that died begin anew without changing what is drawn, learn again, and the others are left alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from latentgen.checkpoints.folder import load_text_encoder, load_tokenizer, load_unet, save_unet
from latentgen.models.attention import Attention, TransformerBlock
from latentgen.models.unet import UNet
from scripts.revive_attention import main
from tests.tiny import TINY_UNET, tiny_unet
from tests.tiny_bundle import save_tiny_model

BLOCK = "up_blocks.1.attentions.0.transformer_blocks.0"


def block_of(unet: UNet) -> TransformerBlock:
    block = unet.get_submodule(BLOCK)
    assert isinstance(block, TransformerBlock)
    return block


def rows_of(layer: Attention, head: int) -> slice:
    width = layer.to_q.out_features // layer.heads
    return slice(head * width, (head + 1) * width)


@torch.no_grad()
def kill_first_head(model: Path) -> None:
    """Let it look at the token that begins every text alone: its queries are all but one, which that token answers."""
    unet, encoder, tokenizer = load_unet(model), load_text_encoder(model), load_tokenizer(model)
    block = block_of(unet)
    block.norm2.weight.mul_(0.01)
    block.norm2.bias.copy_(torch.randn(block.norm2.bias.shape))
    states = encoder(tokenizer.encode(["a red castle in the snow", "", "two boats", "sunset over the sea, pixel art"]))
    rows = rows_of(block.attn2, 0)
    query = block.attn2.to_q.weight[rows] @ block.norm2.bias
    others = states[:, 1:].flatten(0, 1)
    apart = torch.linalg.solve(torch.cov(others.T) + 1e-3 * torch.eye(len(states[0, 0])), states[0, 0] - others.mean(0))
    block.attn2.to_k.weight[rows] = 1e3 * torch.outer(query / query.norm(), apart / apart.norm())
    save_unet(unet, model / "unet")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = save_tiny_model(tmp_path / "model")
    kill_first_head(folder)
    return folder


def call(*arguments: Path) -> None:
    with patch.object(sys, "argv", ["revive_attention.py", *map(str, arguments)]):
        main()


def gradients(unet: UNet, context: torch.Tensor) -> tuple[float, float]:
    """Largest of the two heads' queries, of a loss that every output has a part in."""
    torch.manual_seed(1)
    unet(torch.randn(1, 4, 8, 8), torch.tensor([500]), context).square().mean().backward()
    layer = block_of(unet).attn2
    gradient = layer.to_q.weight.grad
    assert gradient is not None
    first, second = (float(gradient[rows_of(layer, head)].abs().max()) for head in (0, 1))
    return first, second


def test_a_dead_head_begins_anew_and_nothing_changes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(model, tmp_path / "revived")
    revived, change = capsys.readouterr().out.splitlines()
    assert revived == f"{BLOCK}.attn2: 1 of 2 heads begin anew"
    assert float(change.removeprefix("the same 16 pictures differ by ").split()[0]) < 1e-4
    before, after = load_unet(model), load_unet(tmp_path / "revived")
    encoder, tokenizer = load_text_encoder(model), load_tokenizer(model)
    context = encoder(tokenizer.encode(["a blue lighthouse", "three windmills at night"])).detach()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        torch.testing.assert_close(after(x, t, context), before(x, t, context), rtol=1e-4, atol=1e-5)
    old, new = before.state_dict(), after.state_dict()
    rows = rows_of(block_of(after).attn2, 0)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"{BLOCK}.attn2.{part}" for part in
                       ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")}  # fmt: skip
    for part in ("to_q", "to_k", "to_v"):
        ours, theirs = (state[f"{BLOCK}.attn2.{part}.weight"] for state in (new, old))
        assert torch.equal(ours[rows.stop :], theirs[rows.stop :]), "the other head is left alone"


def test_what_was_dead_has_a_gradient_again(model: Path, tmp_path: Path) -> None:
    call(model, tmp_path / "revived")
    encoder, tokenizer = load_text_encoder(model), load_tokenizer(model)
    context = encoder(tokenizer.encode(["a blue lighthouse"])).detach()
    dead, alive = gradients(load_unet(model), context)
    assert dead < 1e-4 * alive
    unet = load_unet(tmp_path / "revived")
    assert gradients(unet, context)[0] == 0, "its output is 0 yet"
    layer = block_of(unet).attn2
    grows = layer.to_out[0].weight.grad
    assert isinstance(grows, torch.Tensor)
    with torch.no_grad():
        layer.to_out[0].weight -= 0.1 * grows / grows.norm()
    unet.zero_grad()
    revived, alive = gradients(unet, context)
    assert revived > 1e-3 * alive


def test_a_living_network_is_written_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_model(tmp_path / "model")
    call(model, tmp_path / "same")
    assert capsys.readouterr().out == "the same 16 pictures differ by 0.0e+00 of their latents' spread\n"
    before, after = load_unet(model).state_dict(), load_unet(tmp_path / "same").state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_inpainting_networks_are_refused(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    save_unet(tiny_unet(replace(TINY_UNET, in_channels=9)), model / "unet")
    with pytest.raises(SystemExit, match="its U-Net takes a picture beside its latents"):
        call(model, tmp_path / "out")


def test_what_cannot_be_read_or_is_there_is_told_in_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        call(model, model)
    assert str(ended.value).endswith("is there already (name a new folder)")
    with pytest.raises(SystemExit) as ended:
        call(tmp_path / "nothing", tmp_path / "out")
    assert str(ended.value).startswith("revive_attention.py: ")
    assert not (tmp_path / "out").exists()
