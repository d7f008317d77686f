from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from latentgen.cli.preview import (
    MAX_SHARE,
    SIXEL_ROW_PX,
    FilePreview,
    Preview,
    StepPictures,
    TerminalPreview,
    check_preview,
    open_target,
)
from latentgen.diffusion.latents import LatentSpace
from latentgen.errors import InputError, RuntimeFailure
from latentgen.images.pixels import Pixels
from latentgen.images.preview import enlarge, fit_latent_rgb, fit_vae_rgb
from latentgen.images.terminal import (
    KITTY_CHUNK,
    cells_of,
    graphics_of,
    half_blocks,
    iterm2,
    kitty,
    sixel,
    why_no_picture,
)
from latentgen.samplers.step import Step


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (24, 10, 3), dtype=np.uint8)


# The affine map


def test_an_affine_decoder_is_found_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 3, generator=generator) * 0.2, torch.tensor([0.1, -0.2, 0.0])
    latents = torch.randn(3, 4, 6, 5, generator=generator)
    colours = torch.einsum("bchw,cd->bdhw", latents, weight) + bias[:, None, None]
    fitted = fit_latent_rgb(latents, F.interpolate(colours, scale_factor=8, mode="nearest"))
    torch.testing.assert_close(fitted.weight, weight, atol=1e-3, rtol=0)  # the ridge pulls by a thousandth
    torch.testing.assert_close(fitted.bias, bias, atol=1e-3, rtol=0)
    expected = ((colours + 1) * 127.5).round().clamp(0, 255).movedim(1, -1)
    assert fitted.decode(latents).dtype == torch.uint8
    assert int((fitted.decode(latents).float() - expected).abs().max()) <= 1


def test_a_channel_without_colour_gets_no_weight_and_broken_latents_are_grey() -> None:
    latents = torch.randn(2, 3, 8, 8)
    latents[:, 2] = 0.5  # says nothing: least squares alone has no answer for it
    fitted = fit_latent_rgb(latents, latents[:, :1].expand(-1, 3, -1, -1))
    assert fitted.weight[2].abs().max() == 0
    assert fitted.decode(torch.full((1, 3, 2, 2), float("nan"))).tolist() == [[[[128] * 3] * 2] * 2]


class BoxAutoencoder(torch.nn.Module):
    """Encodes to mixed means of 8 x 8 patches, so that its map is known."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Parameter(torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, -1.0]]))

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.einsum("bchw,dc->bdhw", F.avg_pool2d(pixels, 8), self.mix)
        return z, z


def test_the_map_of_an_autoencoder_undoes_its_encoding() -> None:
    vae = BoxAutoencoder()
    space = LatentSpace(channels=3, downscale=8, scale=0.5, shift=0.25)
    picture = torch.rand(1, 3, 32, 16) * 1.6 - 0.8
    colours = fit_vae_rgb(vae, space).decode(space.normalize(vae.encode(picture)[0].detach()))  # type: ignore[arg-type]
    expected = (F.avg_pool2d(picture, 8).movedim(1, -1) + 1) * 127.5
    assert (colours.float() - expected).abs().max() < 2


def test_enlarging_keeps_a_flat_picture_flat() -> None:
    assert enlarge(np.full((2, 3, 3), 77, np.uint8), 8).tolist() == np.full((16, 24, 3), 77).tolist()


# Terminals


def test_half_blocks_hold_every_pixel(pixels: Pixels) -> None:
    text = half_blocks(pixels)
    rows, colours = [], None
    for line in text.split("\r\n"):
        row = []
        for code, block in re.findall(r"\x1b\[([0-9;]*)m|(▀)", line):
            if code.startswith("38;2;"):
                numbers = [int(n) for n in code.split(";")]
                colours = (numbers[2:5], numbers[7:10])
            elif block:
                row.append(colours)
        rows += [[upper for upper, _ in row], [lower for _, lower in row]]
    assert np.array_equal(np.array(rows, np.uint8), pixels)
    assert text.endswith(f"\x1b[0m\r\x1b[{len(pixels) // 2 - 1}A")  # back to the first line


def test_equal_neighbours_share_one_colour_code() -> None:
    assert half_blocks(np.zeros((2, 50, 3), np.uint8)).count("\x1b[38") == 1


def test_kitty_gets_a_png_in_chunks() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(pixels, 20, 10))
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in commands) == kitty(pixels, 20, 10)
    assert len(commands) > 1
    assert all(len(data) <= KITTY_CHUNK for _, data in commands)
    assert {"a=T", "f=100", "C=1", "q=2", "c=20", "r=10", "m=1"} <= set(commands[0][0].split(","))
    assert [keys for keys, _ in commands[1:]] == ["m=1"] * (len(commands) - 2) + ["m=0"]
    data = base64.standard_b64decode("".join(data for _, data in commands))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


def test_iterm2_gets_a_png_and_its_size(pixels: Pixels) -> None:
    match = re.fullmatch(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07", iterm2(pixels, 20, 10))
    assert match is not None
    options = dict(option.split("=") for option in match[1].split(";"))
    data = base64.standard_b64decode(match[2])
    assert options == {
        "inline": "1",
        "size": str(len(data)),
        "width": "20",
        "height": "10",
        "preserveAspectRatio": "1",
    }
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


def read_sixel(text: str) -> np.ndarray:
    """A sixel decoder: colours, repeats, returns and bands."""
    match = re.fullmatch(r'\x1bP0;1;0q"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert match is not None
    width, height = int(match[1]), int(match[2])
    picture, palette = np.zeros((height, width, 3)), {}
    x = y = colour = 0
    for define, r, g, b, use, repeat, sign, control in re.findall(
        r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|(?:!(\d+))?([?-~])|([$-])", match[3]
    ):
        if define:
            palette[int(define)] = [int(v) * 255 / 100 for v in (r, g, b)]
        elif use:
            colour = int(use)
        elif sign:
            for _ in range(int(repeat or 1)):
                for bit in range(6):
                    if (ord(sign) - 63) >> bit & 1:
                        picture[y + bit, x] = palette[colour]
                x += 1
        else:
            x, y = 0, y + (6 if control == "-" else 0)
    return picture


def test_sixel_shows_the_picture() -> None:
    flat = np.repeat(np.array([[0, 0, 0], [255, 0, 0], [255, 255, 255], [51, 102, 204]], np.uint8), 5, axis=0)
    picture = np.ascontiguousarray(np.broadcast_to(flat[None], (8, 20, 3)))  # 8 rows: a band of 6 and one of 2
    assert np.abs(read_sixel(sixel(picture)) - picture).max() <= 255 / 200 + 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "KITTY_WINDOW_ID": "1"}, "blocks"),
    ],
)
def test_the_terminal_says_what_it_can(environment: dict[str, str], expected: str) -> None:
    assert graphics_of(environment) == expected
    assert why_no_picture(environment, is_terminal=True) is None


def test_no_picture_where_none_is_wanted() -> None:
    assert why_no_picture({"TERM": "xterm"}, is_terminal=False) == "standard error is not a terminal"
    assert why_no_picture({"TERM": "xterm", "NO_COLOR": "1"}, is_terminal=True) == "NO_COLOR is set"
    assert why_no_picture({"TERM": "dumb"}, is_terminal=True) is not None
    told: list[str] = []
    assert open_target("term", io.StringIO(), told.append) is None
    assert told == ["--preview term shows nothing: standard error is not a terminal"]


def test_a_picture_fits_into_the_window() -> None:
    assert cells_of(256, 256, max_columns=80, max_rows=20) == (40, 20)
    assert cells_of(512, 128, max_columns=80, max_rows=40) == (80, 10)


def screen_of(text: str, lines: int = 60) -> list[str]:
    """What a terminal of that many lines shows in the end; colours are left out."""
    screen, row, column = [""] * lines, 0, 0
    for move, letter, sign in re.findall(r"\x1b\[([0-9;]*)([A-Za-z])|([^\x1b])", text):
        count = int(move) if move.isdigit() else 1
        if letter in ("A", "B"):
            row += count if letter == "B" else -count
        elif letter == "K":
            screen[row] = screen[row][:column]
        elif sign in "\r\n":
            row, column = row + (sign == "\n"), 0
        elif sign:
            screen[row] = screen[row].ljust(column)[:column] + sign + screen[row][column + 1 :]
            column += 1
        assert 0 <= row < lines
    return screen


def test_the_terminal_preview_is_redrawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "41")
    monkeypatch.setenv("LINES", "30")
    stream = io.StringIO()
    target = TerminalPreview(stream, "blocks")
    for caption in ("1/20", "10/20", "20/20"):
        target.show(np.full((32, 64, 3), 9, np.uint8), caption)
    target.finish()
    target.show(np.full((32, 64, 3), 9, np.uint8), "1/20")
    screen = screen_of(stream.getvalue())
    assert screen[:10] == ["▀" * 40] * 10
    assert screen[10] == "20/20"
    assert screen[11:21] == ["▀" * 40] * 10
    assert screen[21:23] == ["1/20", ""]


def test_a_finished_picture_keeps_its_place_in_kitty() -> None:
    stream = io.StringIO()
    target = TerminalPreview(stream, "kitty")
    for _ in range(2):
        target.show(np.zeros((8, 8, 3), np.uint8), "1/2")
        target.show(np.zeros((8, 8, 3), np.uint8), "2/2")
        target.finish()
    first, again, second, last = re.findall(r"\x1b_Ga=T,f=100,i=(\d+)", stream.getvalue())
    assert first == again != second == last


def test_a_sixel_picture_fits_into_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    for height, width in ((1024, 1024), (512, 2048), (64, 64)):
        stream = io.StringIO()
        TerminalPreview(stream, "sixel").show(np.zeros((height, width, 3), np.uint8), "1/2")
        (size,) = re.findall(r'"1;1;(\d+);(\d+)', stream.getvalue())
        shown = (int(size[1]), int(size[0]))
        assert shown[0] <= 22 * SIXEL_ROW_PX
        assert shown[1] <= 80 * SIXEL_ROW_PX / 2
        assert shown[0] / shown[1] == pytest.approx(height / width, rel=0.02)
    assert shown == (64, 64), "what fits is not enlarged"


# When


def step(index: int, total: int = 10, batch: int = 1) -> Step:
    state = torch.zeros(batch, 4, 2, 2) + index
    return Step(index, total, 1.0, state, state)


class Shown:
    def __init__(self) -> None:
        self.captions: list[str] = []
        self.finished = 0

    def show(self, pixels: Pixels, caption: str) -> None:
        self.captions.append(caption)

    def finish(self) -> None:
        self.finished += 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_previews_take_a_small_share_of_the_time() -> None:
    clock, shown = Clock(), Shown()
    cost_s, step_s, steps = 0.02, 0.01, 2000

    def decode(latents: torch.Tensor) -> Pixels:
        clock.now += cost_s
        return np.zeros((2, 2, 3), np.uint8)

    preview = Preview(shown, decode, on_failure=pytest.fail, clock=clock)
    for index in range(steps):
        clock.now += step_s
        preview(step(index, steps))
    assert len(shown.captions) > 2
    assert len(shown.captions) * cost_s <= 1.1 * MAX_SHARE * clock.now + 2 * cost_s  # the first and the last are extra
    assert (shown.captions[0], shown.captions[-1]) == ("1/2000", "2000/2000")
    assert shown.finished == 1


def test_every_third_step_and_the_last() -> None:
    shown = Shown()
    preview = Preview(shown, lambda latents: np.zeros((2, 2, 3), np.uint8), every=3, on_failure=pytest.fail)
    for index in range(10):
        preview(step(index))
    assert shown.captions == ["3/10", "6/10", "9/10", "10/10"]


def test_a_preview_that_fails_is_told_once_and_drawing_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    missing = FilePreview(tmp_path / "gone" / "p.png")
    preview = Preview(missing, lambda latents: np.zeros((2, 2, 3), np.uint8), every=1, on_failure=told.append)
    for index in range(10):
        preview(step(index))
    assert len(told) == 1
    assert told[0].startswith("the preview stops: ")


def test_the_preview_file_is_replaced(tmp_path: Path) -> None:
    target = FilePreview(tmp_path / "p.png")
    for value in (1, 2):
        target.show(np.full((4, 4, 3), value, np.uint8), "")
    assert np.asarray(Image.open(tmp_path / "p.png")).max() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("where", ["p.gif", "p", "no/such/folder/p.png"])
def test_a_preview_nobody_could_write_is_refused(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_preview("term")
    check_preview("p.webp")
    with pytest.raises(InputError, match="--preview"):
        check_preview(where)


# What is kept


def decode_value(latents: torch.Tensor) -> Pixels:
    if not bool(latents.isfinite().all()):
        raise RuntimeFailure("not finite")
    return np.full((8, 8, 3), int(latents.flatten()[0]) * 10, np.uint8)


def test_steps_and_animation_of_a_batch_and_of_a_failure(tmp_path: Path) -> None:
    kept = StepPictures(tmp_path / "a.png", tmp_path / "steps", pictures=3, overwrite=False)
    kept.expect([1, 2, 3])
    for index in range(3):
        kept(step(index, 3, batch=2))
    final = np.full((8, 8, 3), 255, np.uint8)
    first = kept.write(final, decode_value)
    kept.skip()  # the second of the batch failed
    for index in range(3):
        kept(step(index, 3))
    last = kept.write(final, decode_value)
    assert [path.name for path in first] == ["001-0001.png", "001-0002.png", "001-0003.png", "a-001.png"]
    assert [path.name for path in last] == ["003-0001.png", "003-0002.png", "003-0003.png", "a-003.png"]
    with Image.open(tmp_path / "a-003.png") as animation:
        values = [np.asarray(_frame(animation, k)).max() for k in range(animation.n_frames)]
    assert values == [0, 10, 20, 255]
    with pytest.raises(InputError, match="exists"):
        StepPictures(tmp_path / "a.png", None, pictures=3, overwrite=False).expect([1, 2, 3])
    StepPictures(tmp_path / "a.png", None, pictures=3, overwrite=False).expect([2])
    StepPictures(tmp_path / "a.png", None, pictures=3, overwrite=True).expect([1, 2, 3])


def _frame(image: Image.Image, k: int) -> Image.Image:
    image.seek(k)
    return image.convert("RGB")


def test_only_the_shown_steps_are_kept_for_an_animation(tmp_path: Path) -> None:
    kept = StepPictures(tmp_path / "a.gif", None, pictures=1, overwrite=False)
    for index in range(1000):
        kept(step(index, 1000))
    assert len(kept._steps) == 24


@pytest.mark.parametrize(("animation", "folder"), [("a.mp4", None), ("none/a.gif", None), (None, "none/steps")])
def test_files_nobody_could_write_are_refused(
    animation: str | None, folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--gif|--save-steps"):
        StepPictures(
            None if animation is None else Path(animation),
            None if folder is None else Path(folder),
            pictures=1,
            overwrite=False,
        )
