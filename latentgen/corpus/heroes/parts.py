"""What several heroes share: contact shadows, rocks, and windows and lanterns that shine after dusk."""

from __future__ import annotations

from dataclasses import dataclass

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import ColourLike, parse_hex, shade
from latentgen.corpus.paint import ADD_LIGHT, horizontal_gradient, packed, paint, polygon, vertical_gradient


def lights_are_on(canvas: Canvas) -> bool:
    """Lamps are lit from sunset to the end of the night, and under storm and fog."""
    return canvas.palette.time in ("dusk", "night", "sunset") or canvas.weather in ("storm", "fog")


def contact_shadow(canvas: Canvas, x: float, y: float, width: float, alpha: float = 0.34) -> None:
    """The soft shadow that ties an object to the ground it stands on."""
    shadow = paint(canvas.lit("#1a2438", 0.3, 0.0), alpha, blur=max(0.8, width * 0.05))
    canvas.oval(x - canvas.sun_side * width * 0.12, y, width * 0.55, max(1.2, width * 0.09), shadow)


@dataclass(frozen=True, slots=True)
class _Window:
    x: float
    sill: float
    width: float
    height: float
    corner: float


@dataclass(frozen=True, slots=True)
class _Lantern:
    x: float
    y: float
    radius: float


class LightSources:
    """The windows and lanterns of one building: drawn with it by day, and made to shine over it in the dark."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._sources: list[_Window | _Lantern] = []

    def window(
        self,
        x: float,
        sill: float,
        width: float,
        height: float,
        *,
        arched: bool = False,
        frame: ColourLike | None = None,
    ) -> None:
        """A window centred on x that stands on the height `sill`."""
        canvas = self._canvas
        left, top = x - width / 2, sill - height
        if frame is not None:
            canvas.round_rect(left - 0.6, top - 0.6, width + 1.2, height + 1.2, 0.5, paint(frame))
        corner = width * 0.45 if arched else 0.3
        canvas.round_rect(left, top, width, height, corner, paint("#3d5a78"))
        canvas.rect(left + 0.3, top + 0.3, width * 0.35, height * 0.4, paint("#9fc4e0", 0.7))
        self._sources.append(_Window(x, sill, width, height, corner))

    def lantern(self, x: float, y: float, radius: float) -> None:
        """The lamp of a lighthouse; it casts beams when it is dark."""
        self._sources.append(_Lantern(x, y, radius))

    def shine(self) -> None:
        """Draw the light of all of them, if the hour or the weather asks for it. Call after the building is lit."""
        if not lights_are_on(self._canvas):
            return
        brightness = {"sunset": 0.8, "dusk": 1, "night": 1}.get(self._canvas.palette.time, 0.7)
        for source in self._sources:
            if isinstance(source, _Window):
                self._shine_window(source, brightness)
            else:
                self._shine_lantern(source, brightness)

    def _shine_window(self, window: _Window, brightness: float) -> None:
        left, top = window.x - window.width / 2, window.sill - window.height
        pane = paint("#ffd36a", brightness)
        self._canvas.round_rect(left, top, window.width, window.height, window.corner, pane)
        reach = max(window.width, window.height) * 2.6
        self._canvas.glow(window.x, window.sill - window.height / 2, reach, (1, 0.72, 0.3), 0.5 * brightness)

    def _shine_lantern(self, lamp: _Lantern, brightness: float) -> None:
        canvas = self._canvas
        x, y = lamp.x, lamp.y
        canvas.glow(x, y, lamp.radius * 16, (1, 0.85, 0.5), 0.55 * brightness)
        canvas.glow(x, y, lamp.radius * 6, (1, 0.95, 0.75), 0.9 * brightness)
        if canvas.palette.time in ("night", "dusk") or canvas.weather in ("storm", "fog"):
            length, spread = 230, 0.13
            for side in (1, -1):
                slope = canvas.uniform(-0.16, 0.1)
                far_x = x + side * length
                beam = polygon([(x, y), (far_x, y + length * (slope - spread)), (far_x, y + length * (slope + spread))])
                stops = [
                    packed((1, 0.95, 0.72), 0.75 * brightness),
                    packed((1, 0.92, 0.65), 0.25 * brightness),
                    packed((1, 0.9, 0.6), 0),
                ]
                fading = horizontal_gradient(x, x + side * length * 0.85, stops, [0, 0.4, 1])
                canvas.path(beam, paint(shader=fading, blend=ADD_LIGHT, blur=1.2))
        canvas.circle(x, y, lamp.radius, paint("#fff7d8"))


def draw_rocks(
    canvas: Canvas, x: float, y: float, width: float, height: float, *, count: int = 9, mossy: bool = False
) -> None:
    """A heap of boulders with its foot at y, highest in the middle."""
    middle = (count - 1) / 2
    with canvas.lit_layer(
        bounds=(x - width * 0.85, y - height * 1.4, x + width * 0.85, y + 4),
        side_light=SideLight(x - width / 2, x + width / 2, 0.5),
    ):
        for index in sorted(range(count), key=lambda index: -abs(index - middle)):
            offset = (index + 0.5) / count - 0.5
            rock_x = x + offset * width + canvas.uniform(-2, 2)
            rock_height = height * (1 - 1.5 * abs(offset) ** 1.3) * canvas.uniform(0.75, 1.15) + 2
            rock_width = width / count * canvas.uniform(1.3, 2.1)
            stone = shade(parse_hex("#6f6a6b"), canvas.uniform(0.8, 1.15))
            _draw_boulder(canvas, rock_x, y, rock_width, rock_height, stone, mossy)


def _draw_boulder(
    canvas: Canvas, x: float, y: float, half_width: float, height: float, stone: tuple[float, float, float], mossy: bool
) -> None:
    crown = [
        (x - half_width * 0.8, y - height * 0.55),
        (x - half_width * 0.25, y - height),
        (x + half_width * 0.35, y - height * 0.92),
        (x + half_width * 0.85, y - height * 0.45),
    ]
    body = [(x - half_width, y + 2), *crown, (x + half_width, y + 2)]
    face = vertical_gradient(y - height, y, [shade(stone, 1.12), shade(stone, 0.62)])
    canvas.path(polygon(body), paint(shader=face))
    side = canvas.sun_side
    dark_side = [
        (x - side * half_width * 0.1, y - height * 0.97),
        (x - side * half_width * 0.85, y - height * 0.5),
        (x - side * half_width, y + 2),
        (x - side * half_width * 0.1, y + 2),
        (x + side * half_width * 0.1, y - height * 0.4),
    ]
    canvas.path(polygon(dark_side), paint(shade(stone, 0.62), 0.75))
    if mossy:
        canvas.path(polygon([*crown, (x, y - height * 0.62)]), paint("#6fa14a", 0.9))
