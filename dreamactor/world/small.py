"""Who is in the small cast pack that ships with the package.

Mostly looks that are held out (test and validation), so that a pair of a held-out identity and
a held-out motion can be shown and tested from a clone.
"""

from __future__ import annotations

import re

from dreamactor.errors import AssetError
from dreamactor.world.cast import Cast

HUMANS = (
    "units/spartans/infantry_spearman_c#0",
    "units/kushites/infantry_archer_a#0",
    "units/han/cavalry_swordsman_e_r#0",
    "units/macedonians/infantry_pikeman_e#0",
    "units/ptolemies/female_citizen#0",
    "units/ptolemies/healer#0",
    "units/celts/female_citizen#0",
    "units/gauls/infantry_spearman_b#0",
    "units/romans/infantry_swordsman_e#0",
    "units/athenians/female_citizen#0",
    "units/mauryas/infantry_swordsman_e#0",
    "units/spartans/helot_male#0",
)
ANIMALS = (
    "fauna/camel#0",
    "fauna/goat#0",
    "fauna/chicken#0",
    "fauna/rhino#0",
    "fauna/bear_brown#0",
    "fauna/horse#0",
    "fauna/tiger#0",
    "fauna/lion#0",
    "fauna/deer#0",
    "fauna/arctic_wolf#0",
    "fauna/elephant_asian#0",
    "units/britons/wolfhound#0",
)
BIPED_MOTIONS = (
    "citizen/build",
    "citizen/healing_m",
    "citizen/idle_relax_f",
    "citizen/idle_relax_m",
    "citizen/jog_m",
    "citizen/pray",
    "citizen/run",
    "citizen/walk_relax_f",
    "citizen/walk_relax_m",
    "citizen/walk_relax_t",
    "gatherer/carry_wood_m",
    "gatherer/farming",
    "gatherer/gather_fruit_f",
    "gatherer/gather_mine",
    "gatherer/gather_wood",
    "gatherer/seeding",
    "gatherer/walk_axe",
    "infantry/archer/attack_ranged",
    "infantry/archer/jog_ready",
    "infantry/capturing_a",
    "infantry/crossbowman/attack_ranged",
    "infantry/death_a",
    "infantry/crossbowman/idle_relax_01",
    "infantry/hoplite/attack_melee_01",
    "infantry/javelinist/attack_ranged",
    "infantry/knife/attack_melee_knife_a",
    "infantry/pikeman/attack_melee_01",
    "infantry/promotion",
    "infantry/slinger/attack_ranged",
    "infantry/slinger/idle_ready",
    "infantry/hoplite/run_relax",
    "infantry/swordsman/attack_melee_2h_01",
    "infantry/swordsman/walk_ready_2h",
)
HELD_OUT_QUADRUPED_MOTIONS = (
    "deer_run_01",
    "elephant_asian_walk",
    "giraffe_adult_idle_03",
    "horse_pace",
    "mastiff_run",
    "sheep_walk",
    "wolfhound_idle1",
    "zebra_idle",
)
_ANIMAL_ACTIONS = ("walk", "run|gallop", "attack", "idle")
_ACTIONS_EACH = 4
TERRAINS = 4


def choose(cast: Cast) -> tuple[set[str], set[str], set[str]]:
    """Names of the looks, motions and terrains of the mini pack."""
    looks = {n for n in HUMANS + ANIMALS if n in cast.looks}
    if len(looks) < len(HUMANS + ANIMALS) // 2:
        raise AssetError(
            f"only {len(looks)} of the {len(HUMANS + ANIMALS)} looks of the mini pack are in this "
            "art; want 0 A.D. release 26 (Debian 0ad-data 0.0.26)"
        )
    motions = {f"biped/{n}" for n in BIPED_MOTIONS}
    motions |= {f"quadraped/{n}" for n in HELD_OUT_QUADRUPED_MOTIONS}
    motions &= cast.motions.keys()
    for name in sorted(looks.intersection(ANIMALS)):
        found: list[str] = []
        for action in _ANIMAL_ACTIONS:
            named = [m for m in cast.looks[name].motions if re.search(action, m)]
            named = [m for m in named if "breed" not in m and "pony" not in m]
            found += sorted(named, key=lambda m: (cast.motions[m].split == "train", m))[:1]
        motions.update(found[:_ACTIONS_EACH])
    step = max(1, len(cast.terrains) // TERRAINS)
    return looks, motions, set(cast.terrains[::step][:TERRAINS])
