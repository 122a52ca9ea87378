"""What AW Bench World asks the world to show, so that every axis is covered.

A set is two driving clips, four references and six cases of one scenario. 50 sets are the whole
suite: 100 clips, 200 references, 300 cases; fewer are a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dreamactor.bench.manifest import Scenario
from dreamactor.world.axes import Activity, Age
from dreamactor.world.camera import Framing

CASES = ((0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (1, 0))
"""(clip, reference) of a set; references 0 and 2 are driven by both clips."""
SHARES: dict[Scenario, int] = {
    "human2human": 10, "human2toon": 7, "half2full": 6, "animal2animal": 6, "toon2toon": 5,
    "human2animal": 5, "one2many": 5, "many2many": 6,
}  # fmt: skip
"""Sets of each scenario in the whole suite."""

Domain = Literal["human", "animal"]
CameraPlan = Literal["static", "orbit", "follow", "cross"]


@dataclass(frozen=True)
class Slot:
    """What one set shall show."""

    activities: tuple[Activity, Activity]
    """Of its two clips; where the cast lacks one, another is drawn."""
    region: Framing = "full"
    camera: CameraPlan = "static"
    """static stands; orbit goes round the figure, follow goes beside it over the ground: both are
    tracked. cross stands too, and the figure walks through the picture."""
    seconds: float = 2.0
    subjects: int = 1
    """In the reference, and in many2many in the driving clip too."""
    domain: Domain = "human"


_HUMAN = (
    Slot(("work", "fight")),
    Slot(("daily", "fight"), region="upper"),
    Slot(("travel", "travel"), camera="follow"),
    Slot(("daily", "still"), region="face"),
    Slot(("fight", "daily"), camera="orbit"),
    Slot(("work", "work"), seconds=5),
    Slot(("travel", "work"), region="upper", camera="orbit"),
    Slot(("travel", "travel"), camera="cross"),
    Slot(("fight", "travel"), region="face", camera="orbit"),
    Slot(("daily", "travel")),
)
_TOON = (
    Slot(("fight", "daily"), region="upper"),
    Slot(("work", "daily")),
    Slot(("travel", "travel"), camera="follow"),
    Slot(("fight", "work"), camera="orbit"),
    Slot(("daily", "fight"), region="face"),
    Slot(("travel", "fight")),
    Slot(("work", "work"), region="upper", seconds=5),
)
_HALF = (
    Slot(("fight", "work"), camera="orbit"),
    Slot(("work", "fight")),
    Slot(("daily", "travel")),
    Slot(("travel", "travel"), camera="follow"),
    Slot(("still", "daily")),
    Slot(("work", "daily"), seconds=5),
)
_ANIMAL = (
    Slot(("travel", "travel"), camera="follow", domain="animal"),
    Slot(("travel", "fight"), domain="animal"),
    Slot(("fight", "travel"), camera="orbit", domain="animal"),
    Slot(("still", "fight"), region="upper", domain="animal"),
    Slot(("travel", "still"), seconds=5, domain="animal"),
    Slot(("travel", "travel"), camera="cross", domain="animal"),
)
_TOON2TOON = (
    Slot(("work", "fight")),
    Slot(("travel", "fight"), domain="animal"),
    Slot(("daily", "fight"), region="upper"),
    Slot(("travel", "travel"), camera="follow", domain="animal"),
    Slot(("travel", "daily"), camera="orbit"),
)
_HUMAN2ANIMAL = (
    Slot(("travel", "fight")),
    Slot(("daily", "work"), region="upper"),
    Slot(("travel", "travel"), camera="follow"),
    Slot(("work", "daily"), camera="orbit"),
    Slot(("fight", "travel")),
)
_ONE2MANY = (
    Slot(("work", "daily"), subjects=2),
    Slot(("daily", "travel"), subjects=3),
    Slot(("travel", "travel"), camera="follow", subjects=2),
    Slot(("travel", "fight"), subjects=2, domain="animal"),
    Slot(("fight", "work"), subjects=2),
)
_MANY2MANY = (
    Slot(("work", "daily"), subjects=2),
    Slot(("travel", "fight"), subjects=3),
    Slot(("travel", "fight"), subjects=2, domain="animal"),
    Slot(("daily", "work"), camera="orbit", subjects=2),
    Slot(("fight", "travel"), subjects=2),
    Slot(("daily", "fight"), subjects=3),
)
PLAN: dict[Scenario, tuple[Slot, ...]] = {
    "human2human": _HUMAN, "human2toon": _TOON, "half2full": _HALF, "animal2animal": _ANIMAL,
    "toon2toon": _TOON2TOON, "human2animal": _HUMAN2ANIMAL, "one2many": _ONE2MANY,
    "many2many": _MANY2MANY,
}  # fmt: skip


def sets(count: int) -> Iterator[tuple[Scenario, int]]:
    """Scenario and number within it of the first `count` sets.

    The scenario furthest behind its share comes next, so that any beginning is balanced.
    """
    made = dict.fromkeys(SHARES, 0)
    for _ in range(count):
        scenario = min(made, key=lambda name: made[name] / SHARES[name])
        yield scenario, made[scenario]
        made[scenario] += 1


def slot_of(scenario: Scenario, number: int) -> Slot:
    """What set `number` of a scenario shall show; past the plan's end it starts over."""
    return PLAN[scenario][number % len(PLAN[scenario])]


def age_of_member(scenario: Scenario, number: int, member: int) -> Age:
    """Age of somebody of a set of people: one in six a child, one in twelve elderly."""
    turn = (3 * list(SHARES).index(scenario) + 5 * number + 7 * member) % 12
    return "child" if turn in (2, 7) else "elderly" if turn == 0 else "young"
