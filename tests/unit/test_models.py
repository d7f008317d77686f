"""What the networks promise by themselves: shapes, refusals, sizes, properties that need no second implementation."""

from __future__ import annotations

import math
import re
import socket
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentgen.config import ModelConfig
from latentgen.errors import ShapeError
from latentgen.models.attention import GEGLU, attention
from latentgen.models.clip_text import CLIPTextModel, quick_gelu
from latentgen.models.embeddings import timestep_embedding
from latentgen.models.layers import Downsample
from latentgen.models.unet import DeepFeatures, UNet
from latentgen.models.vae import AutoencoderKL
from latentgen.presets import EMBEDDED, SD15, SD21_BASE
from tests.tiny import TINY_TEXT, TINY_UNET, TINY_VAE, randomize, tiny_text_encoder, tiny_unet, tiny_vae


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def unet_inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, TINY_UNET.in_channels, 8, 6)
    return x, torch.tensor([999, 3])[:batch], torch.randn(batch, 7, TINY_UNET.cross_attention_dim)


# --- all three


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        pytest.param(SD15, (859_520_964, 83_653_863, 123_060_480), id="sd15"),
        pytest.param(SD21_BASE, (865_910_724, 83_653_863, 340_387_840), id="sd21"),
    ],
)
def test_published_models_have_their_published_number_of_parameters(
    preset: ModelConfig, parameters: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        networks = UNet(preset.unet), AutoencoderKL(preset.vae), CLIPTextModel(preset.text_encoder)
    assert tuple(count(network) for network in networks) == parameters


def test_networks_are_built_on_the_default_device_and_hold_parameters_only() -> None:
    with torch.device("meta"):
        networks = UNet(EMBEDDED.unet), AutoencoderKL(EMBEDDED.vae), CLIPTextModel(EMBEDDED.text_encoder)
    for network in networks:
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
        assert list(network.buffers()) == []
        assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


@torch.no_grad()
def test_half_precision_weights_give_half_precision_outputs() -> None:
    x, t, context = unet_inputs()
    assert tiny_unet().bfloat16()(x.bfloat16(), t, context.bfloat16()).dtype == torch.bfloat16
    vae = tiny_vae().bfloat16()
    assert vae.decode(torch.randn(1, 4, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert vae.encode(torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
    assert tiny_text_encoder().bfloat16()(torch.zeros(1, 77, dtype=torch.int64)).dtype == torch.bfloat16


def test_the_network_is_blocked_in_tests() -> None:
    with socket.socket() as outward, pytest.raises(AssertionError, match=r"tried to reach the network.*192\.0\.2\.1"):
        outward.connect(("192.0.2.1", 80))


# --- U-Net


@pytest.mark.parametrize("t", [torch.tensor(40), torch.tensor([40]), torch.tensor([40.0, 40.0]), 40, 40.0], ids=repr)
@torch.no_grad()
def test_unet_takes_one_timestep_for_all_or_one_each(t: Tensor | float) -> None:
    unet = tiny_unet()
    x, _, context = unet_inputs()
    torch.testing.assert_close(unet(x, t, context), unet(x, torch.tensor([40, 40]), context), rtol=0, atol=0)


@torch.no_grad()
def test_unet_batch_of_two_equals_two_singles() -> None:
    unet = tiny_unet()
    x, t, context = unet_inputs()
    singles = torch.cat([unet(x[i : i + 1], t[i : i + 1], context[i : i + 1]) for i in range(2)])
    # float32 kernels may sum in another order for another batch size
    torch.testing.assert_close(unet(x, t, context), singles, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("attention_levels", [(True, False), (False, True)])
def test_more_contexts_than_latents_are_the_latents_repeated(attention_levels: tuple[bool, ...], linear: bool) -> None:
    """Guidance's two passes, of two pictures: whole, by features kept, and recomputed in the backward pass."""
    config = replace(TINY_UNET, attention_levels=attention_levels, use_linear_projection=linear)
    unet = tiny_unet(config).double()
    x, t = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([10.0, 900.0])
    context = torch.randn(4, 77, config.cross_attention_dim, dtype=torch.float64)
    calls: list[int] = []
    unet.down_blocks[0].resnets[0].register_forward_hook(lambda _layer, _inputs, output: calls.append(len(output)))
    kept, kept_once = DeepFeatures(), DeepFeatures()
    with torch.inference_mode():
        for _ in ("all of it", "what is shallow"):
            together = unet(torch.cat([x, x]), torch.cat([t, t]), context, deep=kept)
            torch.testing.assert_close(unet(x, t, context, deep=kept_once), together, rtol=1e-9, atol=1e-10)
    assert calls == [4, 2, 4, 2], "what comes before the text is computed once"
    whole = unet(torch.cat([x, x]), torch.cat([t, t]), context)
    gradients = torch.autograd.grad(whole.square().mean(), list(unet.parameters()))
    unet.enable_gradient_checkpointing()
    once = torch.autograd.grad(unet(x, t, context).square().mean(), list(unet.parameters()))
    torch.testing.assert_close(once, gradients, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_unet_depends_on_each_of_its_inputs() -> None:
    unet = tiny_unet()
    x, t, context = unet_inputs()
    out = unet(x, t, context)
    assert out.shape == x.shape
    for changed in (unet(x + 0.1, t, context), unet(x, t + 1, context), unet(x, t, context + 0.1)):
        assert (changed - out).abs().max() > 1e-4


@torch.no_grad()
def test_untrained_unet_predicts_zero() -> None:
    assert UNet(TINY_UNET)(*unet_inputs()).count_nonzero() == 0


@pytest.mark.parametrize(
    ("x_shape", "timesteps", "context_shape", "message"),
    [
        ((2, 4, 7, 8), 2, (2, 7, 24), "7 high and 8 wide.*multiples of 2"),
        ((2, 4, 8, 5), 2, (2, 7, 24), "8 high and 5 wide.*multiples of 2"),
        ((2, 9, 8, 8), 2, (2, 7, 24), r"\(2, 9, 8, 8\).*\(B, 4, h, w\)"),
        ((4, 8, 8), 1, (1, 7, 24), r"\(4, 8, 8\)"),
        ((2, 4, 8, 8), 3, (2, 7, 24), "3 timesteps for 2 latents"),
        ((2, 4, 8, 8), 2, (2, 7, 32), r"\(2, 7, 32\).*\(2, tokens, 24\)"),
        ((2, 4, 8, 8), 2, (1, 7, 24), r"\(1, 7, 24\).*\(2, tokens, 24\)"),
        ((2, 4, 8, 8), 2, (7, 24), r"\(7, 24\).*\(2, tokens, 24\)"),
        ((2, 4, 8, 8), 2, (3, 7, 24), r"\(3, 7, 24\).*\(2, tokens, 24\), or a multiple of 2"),
        ((2, 4, 8, 8), 2, (0, 7, 24), r"\(0, 7, 24\).*\(2, tokens, 24\)"),
    ],
)
def test_unet_refuses_what_does_not_fit(
    x_shape: tuple[int, ...], timesteps: int, context_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        tiny_unet()(torch.zeros(x_shape), torch.zeros(timesteps), torch.zeros(context_shape))


def test_every_unet_parameter_is_trained_in_bf16_autocast() -> None:
    unet = tiny_unet()
    with torch.autocast("cpu", torch.bfloat16):
        out = unet(*unet_inputs())
    out.float().square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


def test_a_unet_block_can_be_recomputed_in_the_backward_pass() -> None:
    block = tiny_unet().down_blocks[0]
    x = torch.randn(2, 16, 8, 6)
    time_emb, context = torch.randn(2, TINY_UNET.time_embed_dim), unet_inputs()[2]

    def gradients(out: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(out.square().sum(), list(block.parameters())))

    plain = gradients(block(x, time_emb, context)[0])
    recomputed = gradients(checkpoint(block, x, time_emb, context, use_reentrant=False)[0])
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


# --- embeddings and layers


def test_timestep_embedding_is_cosines_then_sines() -> None:
    dim, half = 8, 4
    embedding = timestep_embedding(torch.tensor([0, 5]), dim)
    frequencies = [10000.0 ** (-k / half) for k in range(half)]
    expected = [[math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies] for t in (0, 5)]
    torch.testing.assert_close(embedding, torch.tensor(expected))


def test_timestep_embedding_is_float32_for_a_half_precision_timestep() -> None:
    embedding = timestep_embedding(torch.tensor([2.5], dtype=torch.bfloat16), 16)
    torch.testing.assert_close(embedding, timestep_embedding(torch.tensor([2.5]), 16), rtol=0, atol=0)
    assert embedding.dtype == torch.float32


@pytest.mark.parametrize(("pad_all_sides", "reached"), [(True, (-1, -1)), (False, (0, 0))])
def test_downsample_pads_as_the_published_networks(pad_all_sides: bool, reached: tuple[int, int]) -> None:
    """Output pixel (i, j) reads a 3x3 window: it starts one pixel up and left only when every side is padded."""
    downsample = Downsample(1, pad_all_sides=pad_all_sides)
    nn.init.ones_(downsample.conv.weight)
    nn.init.zeros_(downsample.conv.bias)
    x = torch.arange(36.0).view(1, 1, 6, 6)
    top, left = reached
    window = x[0, 0, 2 + top : 5 + top, 4 + left : 6 + left + 1]  # output pixel (1, 2); past the right edge is zero
    assert downsample(x).shape == (1, 1, 3, 3)
    assert downsample(x)[0, 0, 1, 2] == window.sum()


def test_geglu_gates_with_the_second_half() -> None:
    geglu = GEGLU(2, 3)
    x = torch.randn(1, 5, 2)
    value, gate = geglu.proj(x)[..., :3], geglu.proj(x)[..., 3:]
    torch.testing.assert_close(geglu(x), value * F.gelu(gate))


@pytest.mark.parametrize("context_tokens", [16, 5])
def test_both_ways_of_attention_agree(context_tokens: int) -> None:
    """bf16 with gradients takes the explicit products; float32 takes SDPA. Compared by value and by gradient."""
    q, k, v = (torch.randn(2, n, 12).bfloat16() for n in (16, context_tokens, context_tokens))
    weights = torch.randn(2, 16, 12)

    def run(dtype: torch.dtype) -> list[Tensor]:
        leaves = [tokens.to(dtype).requires_grad_() for tokens in (q, k, v)]
        out = attention(leaves[0], leaves[1], leaves[2], heads=3)
        assert out.dtype == dtype
        return [out.float(), *(g.float() for g in torch.autograd.grad((out.float() * weights).sum(), leaves))]

    # bf16 keeps 8 bits: 2^-8 relative, a few of them in a row
    torch.testing.assert_close(run(torch.bfloat16), run(torch.float32), rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("dtype", "tokens", "with_gradients", "causal", "expected"),
    [
        pytest.param(torch.bfloat16, 256, True, False, "products", id="bf16-training"),
        pytest.param(torch.bfloat16, 1056, True, False, "sdpa", id="many-tokens"),
        pytest.param(torch.bfloat16, 256, False, False, "sdpa", id="inference"),
        pytest.param(torch.float32, 256, True, False, "sdpa", id="float32"),
        pytest.param(torch.bfloat16, 256, True, True, "sdpa", id="causal"),
    ],
)
def test_attention_writes_scores_out_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tokens: int, with_gradients: bool, causal: bool, expected: str
) -> None:
    ways: list[str] = []
    for name, way in (("scaled_dot_product_attention", "sdpa"), ("bmm", "products")):
        owner = F if way == "sdpa" else torch
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, f=function, w=way, **k: ways.append(w) or f(*a, **k))
    x = torch.randn(1, tokens, 8, dtype=dtype, requires_grad=with_gradients)
    attention(x, x, x, heads=2, causal=causal)
    assert set(ways) == {expected}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_causal_attention_of_the_first_token_is_its_own_value(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 4, 12, dtype=dtype, requires_grad=True) for _ in range(3))
    torch.testing.assert_close(attention(q, k, v, heads=3, causal=True)[:, 0], v[:, 0])


# --- VAE


@pytest.mark.parametrize("levels", [3, 4, 5])
@torch.no_grad()
def test_vae_of_any_depth_has_its_downscale(levels: int) -> None:
    config = replace(TINY_VAE, block_out_channels=(8,) * levels)
    vae = tiny_vae(config)
    mean, logvar = vae.encode(torch.zeros(1, 3, 32, 64))
    shape = (1, config.latent_channels, 32 // config.downscale, 64 // config.downscale)
    assert config.downscale == 2 ** (levels - 1)
    assert mean.shape == logvar.shape == shape
    assert vae.decode(mean).shape == (1, 3, 32, 64)


def test_vae_without_middle_attention_and_quant_convs_has_no_such_parameters() -> None:
    optional = re.compile(r"quant_conv|attentions")
    bare = replace(TINY_VAE, mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False)
    assert any(optional.search(name) for name in tiny_vae().state_dict())
    assert not any(optional.search(name) for name in tiny_vae(bare).state_dict())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 20, 32), "20 px high and 32 px wide.*multiples of 8"),
        ((1, 3, 32, 20), "32 px high and 20 px wide.*multiples of 8"),
        ((1, 4, 32, 32), r"\(1, 4, 32, 32\).*\(B, 3, H, W\)"),
        ((3, 32, 32), r"\(3, 32, 32\)"),
    ],
)
def test_vae_refuses_pictures_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        tiny_vae().encode(torch.zeros(shape))


def test_vae_refuses_latents_of_another_width() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 16, 4, 4\).*\(B, 4, h, w\)"):
        tiny_vae().decode(torch.zeros(1, 16, 4, 4))


def test_every_vae_parameter_is_trained() -> None:
    vae = tiny_vae()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, logvar = vae.encode(pixels)
    z = mean + (logvar / 2).exp() * torch.randn_like(mean)
    (vae.decode(z) - pixels).square().mean().backward()
    # Softmax ignores what all of a query's scores share, and a key's bias is just that.
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0 or name.endswith("to_k.bias"), name


# --- text encoder


@torch.no_grad()
def test_text_states_do_not_depend_on_later_tokens() -> None:
    text_encoder = tiny_text_encoder()
    token_ids = torch.randint(0, TINY_TEXT.vocab_size, (1, 77))
    changed = token_ids.clone()
    changed[0, 40] = (changed[0, 40] + 1) % TINY_TEXT.vocab_size
    before, after = text_encoder(token_ids), text_encoder(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert (before[:, 40:] - after[:, 40:]).abs().amax(dim=-1).min() > 1e-5


@torch.no_grad()
def test_penultimate_states_equal_those_of_an_encoder_without_its_last_layer() -> None:
    """SD 2.x publishes ViT-H with its last layer dropped: both spellings of the same context."""
    text_encoder = tiny_text_encoder()
    shorter = CLIPTextModel(replace(TINY_TEXT, num_hidden_layers=TINY_TEXT.num_hidden_layers - 1)).eval()
    weights = text_encoder.state_dict()
    shorter.load_state_dict({name: weights[name] for name in shorter.state_dict()})
    token_ids = torch.randint(0, TINY_TEXT.vocab_size, (2, 77))
    penultimate = text_encoder(token_ids, skip_last=1)
    torch.testing.assert_close(penultimate, shorter(token_ids), rtol=0, atol=0)
    assert (penultimate - text_encoder(token_ids)).abs().max() > 1e-2


@pytest.mark.parametrize("shape", [(1, 78), (77,)])
def test_text_encoder_refuses_what_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"{shape}") + ".*up to 77"):
        tiny_text_encoder()(torch.zeros(shape, dtype=torch.int64))


def test_quick_gelu_is_near_gelu_and_not_gelu() -> None:
    x = torch.linspace(-4, 4, 101)
    difference = (quick_gelu(x) - F.gelu(x)).abs().max()
    assert 0.01 < difference < 0.03


def test_randomize_leaves_no_constant_parameter() -> None:
    """The oracles rest on it: a parameter that stays at 0 or 1 would not be compared."""
    for name, parameter in randomize(UNet(TINY_UNET)).named_parameters():
        assert parameter.unique().numel() > 1, name
