"""Staging: how an identity is shown, apart from what it does.

Everything here is drawn from a numpy generator: body, style, light, background, framing and
place in the frame. Colours are sRGB in [0, 1].
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dreamactor.world.camera import Framing
from dreamactor.world.captions import describe_human
from dreamactor.world.cast import Look
from dreamactor.world.pose import Proportions
from dreamactor.world.scene import Background, Colour, Light, Style

SIZES = {"full": (0.74, 0.94), "upper": (0.8, 1.0), "face": (0.62, 0.82)}
"""Framing -> height of what it frames, in parts of the picture's."""
TOON, RECOLOURED = 0.3, 0.3
"""Shares of identities that are drawn as cartoons, and in colours not their own."""
DROPPED = 0.25
"""Share of weapons, tools, capes and shields that are left away."""
DROPPED_SHIELDS = {"full": 0.35, "upper": 0.85, "face": 0.85}
"""The nearer the camera, the more of the figure a shield would hide."""
_FLAT: dict[Literal["plain", "gradient", "noise", "stripes", "checker", "bokeh"], float] = {
    "plain": 0.23,
    "gradient": 0.34,
    "noise": 0.15,
    "stripes": 0.05,
    "checker": 0.03,
    "bokeh": 0.20,
}
TERRAIN = 0.35
VIVID, DARK = 0.1, 0.12
"""Shares of backdrops in strong colours, and of dark ones."""


@dataclass(frozen=True)
class Side:
    """One identity's half of a pair: everything but the motion."""

    look: Look
    proportions: Proportions
    style: Style
    light: Light
    background: Background
    framing: Framing
    size: float
    """Height of the figure (of what `framing` frames) in parts of the picture's."""
    centre: tuple[float, float]
    drop: frozenset[str]
    """Roles of parts that are left away."""


def draw_side(
    rng: np.random.Generator, look: Look, framing: Framing, terrains: tuple[str, ...]
) -> Side:
    """Stage an identity.

    Args:
        rng: What the draws are made from.
        look: The identity.
        framing: How much of it is shown.
        terrains: Grounds to choose from, names of textures.
    """
    roles = sorted({p.role for p in look.parts} & {"weapon", "shield", "cape", "tool"})
    dropped = dict.fromkeys(roles, DROPPED) | {"shield": DROPPED_SHIELDS[framing]}
    return Side(
        look=look,
        proportions=_proportions(rng),
        style=Style(
            kind="toon" if rng.random() < TOON else "textured",
            recolour=float(rng.uniform(0.3, 0.9)) if rng.random() < RECOLOURED else 0.0,
            seed=int(rng.integers(1 << 30)),
        ),
        light=_light(rng),
        background=_background(rng, terrains),
        framing=framing,
        size=float(rng.uniform(*SIZES[framing])),
        centre=(float(rng.uniform(-0.08, 0.08)), float(rng.uniform(-0.04, 0.04))),
        drop=frozenset(role for role in roles if rng.random() < dropped[role]),
    )


def draw_framings(rng: np.random.Generator, domain: str) -> tuple[Framing, Framing]:
    """Driver's and target's; the target never shows what the driver hides."""
    draw, crop = rng.random(), rng.random()
    if domain == "animal":
        return ("upper", "upper") if draw < 0.1 else ("full", "full")
    if draw < 0.1:
        return "face", "face"
    if draw < 0.36:
        return "upper", "upper"
    return "full", "upper" if crop < 0.1 else "full"


def draw_azimuth(rng: np.random.Generator, domain: str) -> float:
    """Mostly frontal for humans, mostly from the side for animals, sometimes from anywhere."""
    if rng.random() < 0.15:
        return float(rng.uniform(-180, 180))
    if domain == "human":
        return float(np.clip(rng.normal(0, 35), -90, 90))
    return float(rng.choice([-1, 1]) * np.clip(rng.normal(60, 30), 0, 120))


def describe(side: Side) -> str:
    """Who is shown, without what is left away."""
    look = side.look
    if not side.drop or not look.name.startswith("units/") or look.domain != "human":
        return look.caption
    parts = [(part.role, part.mesh) for part in look.parts if part.role not in side.drop]
    return describe_human(look.name.split("#")[0], parts, "/f_" in look.parts[0].mesh)


def where(side: Side) -> str:
    """Words for the surroundings: on grass, before a plain backdrop."""
    ground = side.background.texture.removeprefix("terrain-").replace("_", " ").replace("-", " ")
    for word in ("grass", "sand", "dirt", "snow", "paving", "tile", "rocks", "gravel"):
        if word in ground:
            return f"on {word}"
    return "cartoon" if side.style.kind == "toon" else "before a plain backdrop"


def _proportions(rng: np.random.Generator) -> Proportions:
    draw = rng.random()
    if draw < 0.5:
        return Proportions()
    if draw < 0.62:
        return Proportions(
            head=float(rng.uniform(1.35, 1.8)),
            legs=float(rng.uniform(0.6, 0.8)),
            arms=float(rng.uniform(0.75, 0.9)),
            girth=float(rng.uniform(1, 1.2)),
        )
    around = rng.uniform(0.85, 1.15, 5)
    return Proportions(
        head=float(rng.uniform(0.95, 1.3)),
        torso=float(around[0]),
        arms=float(around[1]),
        legs=float(around[2]),
        neck=float(around[3]),
        girth=float(around[4]),
    )


def _light(rng: np.random.Generator) -> Light:
    warm = float(rng.uniform(-0.08, 0.08))
    direction = (
        float(rng.uniform(-0.9, 0.9)),
        float(rng.uniform(0.4, 1)),
        float(rng.uniform(0.3, 1)),
    )
    return Light(
        direction=direction,
        colour=(1 + min(warm, 0), 0.96, 0.9 - max(warm, 0)),
        strength=float(rng.uniform(0.8, 1.15)),
        ambient=float(rng.uniform(0.75, 1.0)),
        exposure=float(rng.uniform(1.2, 1.5)),
    )


def _background(rng: np.random.Generator, terrains: tuple[str, ...]) -> Background:
    colours = _palette(rng)
    outdoors = bool(rng.random() < TERRAIN and terrains)
    return _outdoors(rng, colours, terrains) if outdoors else _indoors(rng, colours)


def draw_background(
    rng: np.random.Generator, terrains: tuple[str, ...], outdoors: bool
) -> Background:
    """Ground and sky, where there are terrains, or a flat backdrop."""
    colours = _palette(rng)
    return _outdoors(rng, colours, terrains) if outdoors and terrains else _indoors(rng, colours)


def _outdoors(
    rng: np.random.Generator, colours: tuple[Colour, ...], terrains: tuple[str, ...]
) -> Background:
    sky = ((0.75, 0.82, 0.9), (0.45, 0.62, 0.85))
    return Background(
        "terrain",
        colours if rng.random() < 0.3 else sky,
        texture=terrains[int(rng.integers(len(terrains)))],
        tile=float(rng.uniform(5, 12)),
    )


def _indoors(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Background:
    kinds = list(_FLAT)
    kind = kinds[int(rng.choice(len(kinds), p=list(_FLAT.values())))]
    seed, scale = int(rng.integers(1 << 30)), float(rng.uniform(0.7, 2))
    return Background(kind, colours, seed=seed, scale=scale)


def _palette(rng: np.random.Generator) -> tuple[Colour, ...]:
    """Two related colours; mostly calm, as studio backdrops are, seldom vivid or dark."""
    hue = float(rng.random())
    vivid, dark = rng.random() < VIVID, rng.random() < DARK
    saturation = float(rng.uniform(0.5, 0.75) if vivid else 0.6 * rng.beta(1.3, 2))
    value = float(rng.uniform(0.2, 0.45) if dark else rng.uniform(0.5, 0.97))
    turn, fade, shade = rng.normal(0, 0.06), rng.uniform(0.4, 1.3), rng.uniform(-0.3, 0.3)
    other = colorsys.hsv_to_rgb(
        float(hue + turn) % 1,
        float(np.clip(saturation * fade, 0, 0.9)),
        float(np.clip(value + shade, 0.15, 1)),
    )
    return colorsys.hsv_to_rgb(hue, saturation, value), other
