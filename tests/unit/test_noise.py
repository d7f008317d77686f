from __future__ import annotations

import numpy as np
import pytest
import torch

from latentgen.diffusion.noise import NoiseSource, starting_point
from latentgen.diffusion.philox import PhiloxNormal, philox
from latentgen.errors import InputError

SHAPES = [(4, 8, 8), (4, 5, 7), (1,), (3, 1, 5)]  # element counts that are and are not multiples of 16


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pictures_noise_is_its_own(shape: tuple[int, ...]) -> None:
    """Every draw, start and later steps, whatever else is in the batch and wherever in it the picture is."""
    alone, batch = NoiseSource([42]), NoiseSource([7, 42, 0])
    for _ in range(3):
        assert torch.equal(alone.draw(shape)[0], batch.draw(shape)[1])


def test_the_first_numbers_do_not_depend_on_how_many_are_drawn() -> None:
    few, many = (NoiseSource([5]).draw((count,))[0] for count in (19, 4096))
    assert torch.equal(few, many[:19])


def test_noise_is_torchs_own_for_that_seed() -> None:
    wanted = torch.randn(1, 4, 64, 64, generator=torch.Generator("cpu").manual_seed(42))
    assert torch.equal(NoiseSource([42]).draw((4, 64, 64)), wanted)


def test_threads_do_not_matter() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = NoiseSource([3]).draw((4, 128, 128))
        torch.set_num_threads(2)
        two = NoiseSource([3]).draw((4, 128, 128))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    NoiseSource([1, 2]).draw((4, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_differ_in_time_and_between_seeds() -> None:
    source = NoiseSource([0, 1, 2**32 - 1])
    rows = torch.cat([source.draw((256,)), source.draw((256,))])
    assert rows.dtype == torch.float32
    assert len({tuple(row.tolist()) for row in rows}) == 6


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_its_authors_known_answers(counter: tuple[int, ...], key: int, words: tuple[int, ...]) -> None:
    """Random123's `kat_vectors`, philox4x32 of 10 rounds."""
    assert philox(np.array(counter, np.uint64)[:, None], key)[:, 0].tolist() == list(words)


def test_the_noise_of_an_nvidia_gpu() -> None:
    """`torch.randn(3, 4, device="cuda")` after `torch.manual_seed(0)`, as A1111 documents it."""
    wanted = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    source = NoiseSource([7, 0], "nv")
    np.testing.assert_allclose(source.draw((3, 4))[1], wanted, rtol=2e-7)
    later = source.draw((3, 4))
    assert later.dtype == torch.float32
    stream = PhiloxNormal(7)
    stream.draw(1)
    assert torch.equal(later[0].flatten()[:5], torch.from_numpy(stream.draw(5))), (
        "whatever was drawn before, or how much"
    )
    many = torch.from_numpy(PhiloxNormal(3).draw(100_000))
    assert float(many.mean()) == pytest.approx(0, abs=0.01)
    assert float(many.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 7])
def test_a_seed_that_torch_would_fold_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=r"0\.\.4294967295"):
        NoiseSource([1, seed])


def test_the_start_has_unit_variance_for_the_network() -> None:
    noise = NoiseSource([0]).draw((4, 8, 8))
    kept = noise.clone()
    start = starting_point(noise, 14.6)
    torch.testing.assert_close(start / (1 + 14.6**2) ** 0.5, noise)
    assert torch.equal(noise, kept)
