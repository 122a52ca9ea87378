"""The axes of AW Bench, told from the cast: what is done, by whom, of which age.

The game's art says little of it. What a motion is for stands in its file's name; an old man has a
head whose texture is named so; children are no art of the game's but grown people in a child's
proportions.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from dreamactor.world.cast import Look, Motion
from dreamactor.world.pose import Proportions

Activity = Literal["daily", "work", "fight", "travel", "still"]
Age = Literal["child", "young", "elderly"]

_ACTIVITIES: tuple[tuple[str, Activity], ...] = (  # name of the motion -> activity; first match
    (r"siege_operators.*attack|gather_|farming|seeding|slaughter|support_build|/build", "work"),
    (r"attack|capturing", "fight"),
    (r"walk|run|jog|trot|gallop|canter|pace|flight|glide|swim|move", "travel"),
    (r"idle_carry|idle_fisher", "work"),
    (r"idle|sit$|laydown|testudo|syntagma|turret", "still"),
)
NOT_SHOWN = re.compile(r"rider/|chariot/|fisher|death|dead|lithobolos_attack_04")
"""Motions that look wrong alone: seats, boats and reins that are not there; a man who climbs a
siege engine through the air; the fallen, who lie in the ground on other bodies."""
_OLD = re.compile(r"head.*_old_|_elder|grandfather")
CHILD_HEAD = 1.3
"""Size of the head, in parts of the look's own, from which a figure on short legs is a child."""


def activity_of(motion: Motion) -> Activity:
    """What a motion is, by its name; what is none of the others is daily."""
    for pattern, activity in _ACTIVITIES:
        if re.search(pattern, motion.name):
            return activity
    return "daily"


def is_old(look: Look) -> bool:
    """Whether a look is a person whose head the art names old."""
    return look.domain == "human" and any(
        part.role == "head" and _OLD.search(part.texture) for part in look.parts
    )


def is_child(proportions: Proportions) -> bool:
    """Whether somebody of these proportions looks like a child."""
    return proportions.head >= CHILD_HEAD and proportions.legs <= 0.8


def age_of(look: Look, proportions: Proportions) -> Age | None:
    """Age of a person as shown; none of an animal."""
    if look.domain != "human":
        return None
    if is_child(proportions):
        return "child"
    return "elderly" if is_old(look) else "young"


def child_proportions(rng: np.random.Generator) -> Proportions:
    """A child of about 4 to 9: a large head on a short body."""
    return Proportions(
        head=float(rng.uniform(1.35, 1.55)),
        torso=float(rng.uniform(0.8, 0.92)),
        arms=float(rng.uniform(0.72, 0.84)),
        legs=float(rng.uniform(0.62, 0.76)),
        girth=float(rng.uniform(0.95, 1.1)),
    )


def species_of(look: Look) -> str | None:
    """An animal's kind, such as camel; none of a person."""
    if look.domain == "human":
        return None
    return look.group.split("/")[-1].split("~")[0].replace("_", " ")
