"""What the manifest of AW Bench World says of its media, told from what was drawn.

Rows are made before their files: their digests are zeros until `world_suite` has drawn them.
"""

from __future__ import annotations

from typing import Any

from dreamactor.bench.manifest import Activity, Age, CameraMoves, Media, Subject
from dreamactor.bench.world_sets import DrawnSet
from dreamactor.world.axes import activity_of, age_of, species_of
from dreamactor.world.crowd import Group, Shot
from dreamactor.world.troupe import group_caption, shot_caption

LICENCE = "CC-BY-SA-3.0"
ATTRIBUTION = "art of 0 A.D. (play0ad.com), (c) Wildfire Games and contributors; drawn from it"
PENDING = "0" * 64


def driver_row(drawn: DrawnSet, clip: int) -> Media:
    """A driving clip."""
    stage = drawn.drivers[clip]
    shot, name = stage.shots[0], f"{drawn.scenario}-{drawn.number:02d}{'ab'[clip]}"
    return Media(
        name=f"driving/{name}",
        kind="driving",
        file=f"media/driving/{name}.mp4",
        activity=_activity(shot),
        camera=_camera(drawn),
        caption=shot_caption(stage.group, shot),
        about=_about(drawn, stage.group, shot),
        **_axes(stage.group),
    )


def reference_row(drawn: DrawnSet, place: int) -> Media:
    """A reference."""
    stage = drawn.references[place].stage
    name = f"{drawn.scenario}-{drawn.number:02d}-{place + 1}"
    return Media(
        name=f"reference/{name}",
        kind="reference",
        file=f"media/reference/{name}.png",
        caption=group_caption(stage.group),
        about=_about(drawn, stage.group, stage.shots[0]),
        **_axes(stage.group),
    )


def truth_row(drawn: DrawnSet, clip: int, place: int, case: str, arrays: bool) -> Media | None:
    """A truth, where there is one; it is named as its case is."""
    reference = drawn.references[place]
    if clip not in reference.clips:
        return None
    stage, file = reference.stage, case.replace("/", "_")
    shot = stage.shots[1 + reference.clips.index(clip)]
    return Media(
        name=f"truth/{case}",
        kind="truth",
        file=f"media/truth/{file}.mp4",
        activity=_activity(shot),
        camera=_camera(drawn),
        caption=shot_caption(stage.group, shot),
        arrays=f"media/truth/{file}.npz" if arrays else None,
        arrays_sha256=PENDING if arrays else None,
        about=_about(drawn, stage.group, shot),
        **_axes(stage.group),
    )


def prompt_of(drawn: DrawnSet, clip: int, place: int) -> str:
    """What the result shows; of an animal that a person drives, the person's verb."""
    return shot_caption(drawn.references[place].stage.group, drawn.drivers[clip].shots[0])


def _axes(group: Group) -> dict[str, Any]:
    """Fields that references and clips share; what differs between subjects is left open."""
    first = group.sides[0]
    ages: set[Age | None] = {age_of(side.look, side.proportions) for side in group.sides}
    species = {species_of(side.look) for side in group.sides}
    toon = {side.style.kind == "toon" for side in group.sides} == {True}
    subject: Subject = "cartoon" if toon else first.look.domain
    return {
        "sha256": PENDING,
        "licence": LICENCE,
        "attribution": ATTRIBUTION,
        "subject": subject,
        "species": species.pop() if len(species) == 1 else None,
        "region": first.framing,
        "age": ages.pop() if len(ages) == 1 else None,
        "subjects": len(group),
    }


def _activity(shot: Shot) -> Activity | None:
    done = {activity_of(act.motion) for act in shot.acts}
    return done.pop() if len(done) == 1 else None


def _camera(drawn: DrawnSet) -> CameraMoves:
    return "tracked" if drawn.slot.camera in ("orbit", "follow") else "static"


def _about(drawn: DrawnSet, group: Group, shot: Shot) -> dict[str, Any]:
    """What was drawn, for who wants to know more than the axes say."""
    return {
        "looks": [side.look.name for side in group.sides],
        "motions": [act.motion.name for act in shot.acts],
        "azimuth": round(float(shot.azimuth[0]), 1),
        "sweep": round(float(shot.azimuth[-1] - shot.azimuth[0]), 1),
        "camera": drawn.slot.camera,
    }
