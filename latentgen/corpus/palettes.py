"""The light of a picture: a palette for each time of day, and what weather does to it.

Sky, haze, clouds, water and the light on every object come from one palette, so the colours of a picture always agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentgen.corpus.colour import Rgb, luminance, mix, parse_hex, saturate, shade
from latentgen.corpus.scene import TimeOfDay, Weather


@dataclass(frozen=True, slots=True)
class Palette:
    """All colours that depend on the hour and the weather."""

    time: TimeOfDay
    sky: tuple[Rgb, ...]
    """From the zenith down to the horizon."""
    haze: Rgb
    """What distance fades to."""
    cloud_light: Rgb
    cloud_shade: Rgb
    sea: tuple[Rgb, ...]
    """From the horizon down to the viewer."""
    key_light: Rgb
    """Multiplies surfaces that face the sun."""
    shadow_light: Rgb
    """Multiplies surfaces that face away."""
    sun: Rgb
    """The disc of the sun or moon."""
    glow: Rgb
    """The light around it."""


def _palette(
    time: TimeOfDay,
    *,
    sky: Sequence[str],
    haze: str,
    cloud_light: str,
    cloud_shade: str,
    sea: Sequence[str],
    key_light: Rgb,
    shadow_light: Rgb,
    sun: str,
    glow: str,
) -> Palette:
    return Palette(
        time=time,
        sky=tuple(parse_hex(colour) for colour in sky),
        haze=parse_hex(haze),
        cloud_light=parse_hex(cloud_light),
        cloud_shade=parse_hex(cloud_shade),
        sea=tuple(parse_hex(colour) for colour in sea),
        key_light=key_light,
        shadow_light=shadow_light,
        sun=parse_hex(sun),
        glow=parse_hex(glow),
    )


WARM_HOURS = ("dawn", "sunset", "dusk")
SLATE: Rgb = (0.47, 0.51, 0.58)
"""What the clouds of a closed sky are drawn towards when the sun is low: gray, with the colours left to the horizon."""


def under_weather(palette: Palette, weather: Weather) -> Palette:
    """The palette under a closed sky: grayer, flatter, and darker in rain and storm. Other weathers change nothing.

    When the sun is low the clouds are gray and a band of its light is left under them: so both the hour and the
    weather can be told.
    """
    night = palette.time == "night"
    warm = palette.time in WARM_HOURS
    saturation_and_brightness: dict[Weather, tuple[float, float]] = {
        "overcast": (0.8 if night else 0.68 if warm else 0.45, 0.98 if warm else 0.92),
        "rain": (0.85 if night else 0.7 if warm else 0.5, 1.15 if night else 0.9),
        "storm": (0.75 if night else 0.6 if warm else 0.45, 0.95 if night else 0.64),
        "snow": (0.8 if night else 0.7 if warm else 0.5, 1.1 if night else 1.05),
        "fog": (0.7 if night else 0.68 if warm else 0.4, 1.3 if night else 1.0),
    }
    if weather not in saturation_and_brightness:
        return palette
    saturation, brightness = saturation_and_brightness[weather]
    graying = 0.72 if warm and weather != "fog" else 0.0

    def dull(colour: Rgb) -> Rgb:
        return shade(saturate(colour, saturation), brightness)

    def clouded(colour: Rgb) -> Rgb:
        """Dull, and with its brightness kept but most of its hue gone where the sun is low."""
        dulled = dull(colour)
        return mix(dulled, shade(SLATE, luminance(dulled) / luminance(SLATE)), graying)

    veil = mix(palette.haze, (0.75, 0.79, 0.85), 0.3)
    fog_bank = shade((0.80, 0.83, 0.87), brightness * luminance(palette.haze) * (1.9 if night else 1.15))
    key = luminance(palette.key_light) * 0.9
    key_light = mix(palette.key_light, (key * 0.96, key, key * 1.05), 0.7)
    shadow_light = mix(palette.shadow_light, (key * 0.72, key * 0.76, key * 0.84), 0.5)
    dimming = brightness**0.5
    return replace(
        palette,
        sky=(
            *(mix(clouded(colour), clouded(veil), 0.45) for colour in palette.sky[:-1]),
            mix(dull(palette.sky[-1]), fog_bank if weather == "fog" else dull(veil), 0.2 if warm else 0.45),
        ),
        haze=mix(dull(palette.haze), fog_bank, 0.15 if graying else 0.75 if night else 0.4),
        cloud_light=clouded(palette.cloud_light),
        cloud_shade=shade(clouded(palette.cloud_shade), 1.1 if night else 0.85),
        sea=(dull(palette.sea[0]), *(mix(dull(colour), clouded(colour), 0.6) for colour in palette.sea[1:])),
        key_light=(key_light[0] * dimming, key_light[1] * dimming, key_light[2] * dimming),
        shadow_light=(shadow_light[0] * dimming, shadow_light[1] * dimming, shadow_light[2] * dimming),
    )


COLOUR_CONSTANCY = {"day": 0.0, "dawn": 0.4, "sunset": 0.45, "dusk": 0.45, "night": 0.4}
"""How far the light on a subject is drawn towards white, so that a yellow sail at sunset is yellow and not orange."""


def lifted_for_subject(palette: Palette, lift: float) -> Palette:
    """The palette with both lights raised and less coloured: a subject stays legible, and keeps its own colour."""
    constancy = COLOUR_CONSTANCY[palette.time]
    key_light = saturate(palette.key_light, 1 - constancy)
    shadow_light = saturate(palette.shadow_light, 1 - constancy)

    def lift_key(light: float) -> float:
        return min(1.1, light + lift * (1.02 - light)) if light < 1 else light

    def lift_shadow(light: float) -> float:
        return light + lift * 0.55 * (1 - light)

    key, shadow = key_light, shadow_light
    return replace(
        palette,
        key_light=(lift_key(key[0]), lift_key(key[1]), lift_key(key[2])),
        shadow_light=(lift_shadow(shadow[0]), lift_shadow(shadow[1]), lift_shadow(shadow[2])),
    )


PALETTES: dict[TimeOfDay, tuple[Palette, ...]] = {
    "day": (
        _palette(
            "day",
            sky=("#2a7ad6", "#6fbbf0", "#d3effb"),
            haze="#cbe6f4",
            cloud_light="#ffffff",
            cloud_shade="#bcd3ea",
            sea=("#7fd0e6", "#1d7fb8", "#0d5490"),
            key_light=(1.05, 1.03, 0.97),
            shadow_light=(0.66, 0.76, 0.92),
            sun="#fff6d8",
            glow="#fff3c9",
        ),
        _palette(
            "day",
            sky=("#1797c6", "#79d2e4", "#f4f3d6"),
            haze="#d5ece6",
            cloud_light="#fffdf5",
            cloud_shade="#b5d8e0",
            sea=("#8fe0dc", "#27a3b8", "#0f6a8c"),
            key_light=(1.06, 1.03, 0.94),
            shadow_light=(0.66, 0.78, 0.88),
            sun="#fff4c4",
            glow="#ffefb0",
        ),
        _palette(
            "day",
            sky=("#5aa9e8", "#a9dcf6", "#fdf0da"),
            haze="#e3edf0",
            cloud_light="#ffffff",
            cloud_shade="#c9d9ee",
            sea=("#9fdcf0", "#3b9fcb", "#1a6aa0"),
            key_light=(1.05, 1.02, 0.96),
            shadow_light=(0.68, 0.76, 0.92),
            sun="#fff3cf",
            glow="#fff0c0",
        ),
        _palette(
            "day",
            sky=("#3f6fd8", "#86b4f2", "#dfeefe"),
            haze="#d4e4f8",
            cloud_light="#ffffff",
            cloud_shade="#b9cbee",
            sea=("#86b9ea", "#2f74c6", "#16458f"),
            key_light=(1.05, 1.02, 0.98),
            shadow_light=(0.64, 0.72, 0.94),
            sun="#fff8e0",
            glow="#fff3d0",
        ),
    ),
    "dawn": (
        _palette(
            "dawn",
            sky=("#3b5b9a", "#a58fc4", "#f7b7a3", "#ffe3b3"),
            haze="#f2c6bb",
            cloud_light="#ffe9d6",
            cloud_shade="#b79cc4",
            sea=("#ffd9b5", "#b58fb4", "#4a5f98"),
            key_light=(1.06, 0.9, 0.8),
            shadow_light=(0.58, 0.56, 0.74),
            sun="#fff0c8",
            glow="#ffd9a0",
        ),
        _palette(
            "dawn",
            sky=("#5a7bb8", "#c9a9d0", "#ffc9b5", "#fff0cf"),
            haze="#f7d6cc",
            cloud_light="#fff3e6",
            cloud_shade="#c7afd0",
            sea=("#ffe3c8", "#c3a3c4", "#5c76aa"),
            key_light=(1.06, 0.94, 0.86),
            shadow_light=(0.64, 0.62, 0.8),
            sun="#fff6dc",
            glow="#ffe2b5",
        ),
        _palette(
            "dawn",
            sky=("#6fa3cf", "#cfd3dd", "#ffd8b0", "#ffe9b8"),
            haze="#f6dfc6",
            cloud_light="#fff4e2",
            cloud_shade="#bcc0d4",
            sea=("#ffe6bd", "#9cc0cc", "#3f7fa0"),
            key_light=(1.06, 0.97, 0.84),
            shadow_light=(0.62, 0.66, 0.8),
            sun="#fff2c4",
            glow="#ffe3a0",
        ),
    ),
    "sunset": (
        _palette(
            "sunset",
            sky=("#2b2a5e", "#8a3a7d", "#e8594f", "#ffb347", "#ffe08a"),
            haze="#f2955f",
            cloud_light="#ffc27a",
            cloud_shade="#a34a72",
            sea=("#ffcf7a", "#d8624f", "#3c2a5c"),
            key_light=(1.12, 0.8, 0.58),
            shadow_light=(0.5, 0.38, 0.58),
            sun="#fff1b8",
            glow="#ffcf6b",
        ),
        _palette(
            "sunset",
            sky=("#45356f", "#b04a77", "#f47b5a", "#ffc56e"),
            haze="#f0956f",
            cloud_light="#ffb98a",
            cloud_shade="#b0587f",
            sea=("#ffc27a", "#c95a68", "#3e2f62"),
            key_light=(1.1, 0.78, 0.6),
            shadow_light=(0.52, 0.4, 0.6),
            sun="#fff0bf",
            glow="#ffca78",
        ),
        _palette(
            "sunset",
            sky=("#1f3a68", "#7d5b8c", "#e97a63", "#ffcf7f"),
            haze="#e8a07c",
            cloud_light="#ffc79a",
            cloud_shade="#8c6391",
            sea=("#ffd08a", "#b0687a", "#22385f"),
            key_light=(1.1, 0.82, 0.62),
            shadow_light=(0.48, 0.42, 0.6),
            sun="#fff0c0",
            glow="#ffd080",
        ),
        _palette(
            "sunset",
            sky=("#6a2f5f", "#d9475a", "#ff8a4c", "#ffd37a"),
            haze="#fa9a62",
            cloud_light="#ffbe80",
            cloud_shade="#c04a60",
            sea=("#ffc868", "#d0484e", "#551f4c"),
            key_light=(1.14, 0.76, 0.54),
            shadow_light=(0.54, 0.34, 0.5),
            sun="#fff3c0",
            glow="#ffd070",
        ),
        _palette(
            "sunset",
            sky=("#2f6f8f", "#8fb8a8", "#f6d58a", "#f9a05a"),
            haze="#f0c48a",
            cloud_light="#ffe0b0",
            cloud_shade="#9aa79f",
            sea=("#fbd58c", "#6aa0a0", "#1f5c78"),
            key_light=(1.1, 0.9, 0.66),
            shadow_light=(0.5, 0.52, 0.58),
            sun="#fff4cc",
            glow="#ffd98a",
        ),
    ),
    "dusk": (
        _palette(
            "dusk",
            sky=("#171f4e", "#3e3a7c", "#8d5a9b", "#e68a95"),
            haze="#9c6b9c",
            cloud_light="#b884b0",
            cloud_shade="#4d4482",
            sea=("#d58a9c", "#5c4a8c", "#1b2355"),
            key_light=(0.82, 0.64, 0.78),
            shadow_light=(0.36, 0.33, 0.58),
            sun="#ffd9c4",
            glow="#ff9fa0",
        ),
        _palette(
            "dusk",
            sky=("#10254a", "#27527f", "#6d86a8", "#f0b28c"),
            haze="#8f93a8",
            cloud_light="#b6a6b0",
            cloud_shade="#3f5a80",
            sea=("#e0b09a", "#476a90", "#122a50"),
            key_light=(0.8, 0.7, 0.72),
            shadow_light=(0.33, 0.4, 0.56),
            sun="#ffe0c0",
            glow="#ffb58a",
        ),
        _palette(
            "dusk",
            sky=("#241b4b", "#5a3d86", "#b869a0", "#f7a99a"),
            haze="#b077a8",
            cloud_light="#d394b8",
            cloud_shade="#5a4590",
            sea=("#f0a8a0", "#7c549c", "#281e50"),
            key_light=(0.86, 0.64, 0.78),
            shadow_light=(0.38, 0.32, 0.58),
            sun="#ffe0cc",
            glow="#ffaaa0",
        ),
    ),
    "night": (
        _palette(
            "night",
            sky=("#060b26", "#0f1f4f", "#27457f"),
            haze="#2b4475",
            cloud_light="#3d5a90",
            cloud_shade="#182c5c",
            sea=("#3c6098", "#173160", "#081532"),
            key_light=(0.58, 0.69, 1.0),
            shadow_light=(0.27, 0.33, 0.6),
            sun="#f4f3e0",
            glow="#b8cdf5",
        ),
        _palette(
            "night",
            sky=("#0a0a2a", "#1c1c57", "#4a3f86"),
            haze="#3c3a72",
            cloud_light="#5a528e",
            cloud_shade="#23225a",
            sea=("#5c5298", "#262660", "#0c0c2e"),
            key_light=(0.62, 0.63, 1.0),
            shadow_light=(0.29, 0.29, 0.6),
            sun="#fbf3dc",
            glow="#cabff5",
        ),
        _palette(
            "night",
            sky=("#04141f", "#0b3244", "#1f6276"),
            haze="#1f5162",
            cloud_light="#3a6c7c",
            cloud_shade="#10394a",
            sea=("#347a88", "#0f4354", "#05202c"),
            key_light=(0.54, 0.74, 0.9),
            shadow_light=(0.24, 0.38, 0.5),
            sun="#f5f5e4",
            glow="#b0e0e6",
        ),
    ),
}
