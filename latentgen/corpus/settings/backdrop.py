"""From a scene's setting to its backdrop: the horizon, the sun's height, the sky, and the setting's own drawing."""

from __future__ import annotations

from collections.abc import Callable

from latentgen.corpus.canvas import Canvas
from latentgen.corpus.clouds import draw_clouds
from latentgen.corpus.scene import Setting
from latentgen.corpus.settings.city import draw_city
from latentgen.corpus.settings.countryside import draw_farm, draw_garden, draw_river
from latentgen.corpus.settings.indoors import draw_studio, draw_table
from latentgen.corpus.settings.open_land import draw_mountain_lake, draw_mountain_land, draw_open_land
from latentgen.corpus.settings.otherworlds import draw_space, draw_underwater
from latentgen.corpus.settings.shores import draw_beach, draw_cliff_sea, draw_island, draw_sea
from latentgen.corpus.settings.stage import Stage
from latentgen.corpus.settings.wilderness import draw_desert, draw_forest
from latentgen.corpus.sky import draw_birds, draw_sky
from latentgen.corpus.weather import draw_lightning

HORIZON_RANGES: dict[Setting, tuple[float, float]] = {
    "sea": (120, 150),
    "cliff": (130, 155),
    "beach": (112, 135),
    "meadow": (140, 165),
    "hills": (130, 155),
    "mountains": (140, 160),
    "desert": (135, 160),
    "snow": (140, 165),
    "city": (165, 185),
    "village": (145, 165),
    "lake": (138, 155),
    "autumn": (145, 165),
    "island": (118, 140),
    "garden": (150, 165),
    "farm": (140, 155),
    "river": (135, 150),
}
FOREST_HORIZON = 150.0
NO_HORIZON = 256.0

INDOOR_AND_OTHERWORLD: dict[Setting, Callable[[Canvas, float], Stage]] = {
    "studio": draw_studio,
    "table": draw_table,
    "underwater": draw_underwater,
    "space": draw_space,
}
UNDER_THE_SKY: dict[Setting, Callable[[Canvas, float], Stage]] = {
    "sea": draw_sea,
    "cliff": draw_cliff_sea,
    "beach": draw_beach,
    "island": draw_island,
    "lake": draw_mountain_lake,
    "river": draw_river,
    "meadow": draw_open_land,
    "hills": draw_open_land,
    "mountains": draw_mountain_land,
    "village": draw_open_land,
    "autumn": draw_open_land,
    "garden": draw_garden,
    "farm": draw_farm,
    "snow": draw_open_land,
    "desert": draw_desert,
    "forest": draw_forest,
    "city": draw_city,
}


def draw_backdrop(canvas: Canvas) -> Stage:
    """Draw everything behind the subjects. May change the canvas's palette (a studio has its own light)."""
    setting = canvas.scene.setting
    # Every range is drawn from, so the numbers that follow do not depend on the setting.
    horizons = {place: canvas.uniform(*bounds) for place, bounds in HORIZON_RANGES.items()}
    horizon = FOREST_HORIZON if setting == "forest" else horizons.get(setting, NO_HORIZON)
    sun_heights = {
        "day": canvas.uniform(0.12, 0.4),
        "dawn": canvas.uniform(0.62, 0.9),
        "sunset": canvas.uniform(0.7, 0.97),
        "dusk": canvas.uniform(0.25, 0.5),
        "night": canvas.uniform(0.12, 0.45),
    }
    canvas.sun_y = horizon * sun_heights[canvas.palette.time]
    if setting in INDOOR_AND_OTHERWORLD:
        return INDOOR_AND_OTHERWORLD[setting](canvas, horizon)
    _draw_open_sky(canvas, horizon)
    return UNDER_THE_SKY[setting](canvas, horizon)


def _draw_open_sky(canvas: Canvas, horizon: float) -> None:
    time, weather = canvas.palette.time, canvas.weather
    draw_sky(canvas, horizon)
    starry = time == "night" and weather in ("clear", "aurora")
    if (weather != "clear" or canvas.chance(0.6)) and not starry:
        draw_clouds(canvas, horizon)
    if weather == "storm":
        draw_lightning(canvas, horizon)
    fair = weather in ("clear", "cloudy") and time in ("day", "sunset", "dawn")
    if fair and canvas.chance(0.5) and canvas.scene.setting != "city":
        draw_birds(canvas, horizon)
