"""Bodies: change proportions, and carry a motion from one skeleton to another.

Shapes as in `pose`: T frames, J bones, poses (T, J, 4, 4) bone to world.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dreamactor.errors import AssetError
from dreamactor.world.camera import bounds
from dreamactor.world.cast import Array, Cast, Look, Motion, Skeleton
from dreamactor.world.pose import (
    End,
    Proportions,
    Track,
    in_place,
    joint_of_bone,
    matrices,
    quat_apply,
    quat_between,
    quat_conj,
    quat_mul,
    remembered,
    sample_motion,
    skinning,
)

# Joint (without its side) -> the field of `Proportions` that scales the bone below it.
LENGTH_OF = {
    "head": "head",
    "neck": "neck",
    "pelvis": "torso",
    "spine": "torso",
    "chest": "torso",
    "shoulder": "arms",
    "elbow": "arms",
    "wrist": "hands",
    "hip": "legs",
    "knee": "legs",
    "ankle": "feet",
    "toe": "feet",
    "tail": "tail",
}
WHOLE = ("head", "wrist", "ankle", "toe")  # these grow in all directions
SAME_LENGTH = 0.1  # |log ratio| of bone lengths below which two bodies count as one
HIGHER = 0.25  # see `_cannons`
Bones = NDArray[np.int64]
Links = list[tuple[Bones, Bones]]  # bones and their parents; an item only needs those before it
NEXT_JOINT = {"shoulder": "elbow", "elbow": "wrist", "hip": "knee", "knee": "ankle", "neck": "head"}


def _base(joint: str) -> str:
    """Joint name without side or number: elbow_l -> elbow, tail_2 -> tail."""
    return joint.split("_")[0]


def bone_scales(skeleton: Skeleton, proportions: Proportions) -> Array:
    """(J, 3, 3) scale of each bone's own frame, as `Proportions` asks."""
    fields, along = _limbs(skeleton)
    length = np.array([getattr(proportions, field) if field else 1.0 for field in fields])
    girth = np.where(along.any(axis=(1, 2)), proportions.girth, length)  # (J,)
    stretch = (length - girth).astype(np.float32)[:, None, None] * along
    return np.asarray(girth[:, None, None] * np.eye(3) + stretch, np.float32)


@remembered
def _limbs(skeleton: Skeleton) -> tuple[list[str], Array]:
    """What scales each bone's length, '' for nothing, and which way it is long.

    Returns:
        (J,) fields of `Proportions`, and (J, 3, 3) projections on the bone's direction in its own
        frame; 0 for a bone that scales in all directions.
    """
    names = joint_of_bone(skeleton)
    fields = [LENGTH_OF.get(_base(name), "") for name in names]
    along = np.zeros((len(names), 3, 3), np.float32)
    for bone, name in enumerate(names):
        base = _base(name)
        if not fields[bone] or base in WHOLE:
            continue
        if base in ("pelvis", "spine", "chest"):
            axis = np.array([0, 1, 0], dtype=np.float32)  # the torso grows upwards
        else:
            ending = name[len(base) :]
            below = skeleton.joints.get(NEXT_JOINT.get(base, "") + ending)
            start = skeleton.bind_position[skeleton.joints[name]]
            if below is None:
                children = np.flatnonzero(skeleton.parents == bone)
                below = int(children[0]) if len(children) else None
            axis = np.zeros(3, np.float32) if below is None else skeleton.bind_position[below]
            axis = axis - start
        norm = float(np.linalg.norm(axis))
        if norm >= 1e-5:
            local = quat_apply(quat_conj(skeleton.bind_rotation[bone]), axis / norm)
            along[bone] = np.outer(local, local)
    return fields, along


def shape(skeleton: Skeleton, track: Track, proportions: Proportions) -> Array:
    """Pose (T, J, 4, 4) of the track on a body of other proportions.

    Bones keep their rotations, joints stay connected, and the lower of the feet keeps its
    height above the ground.
    """
    pose = matrices(track)
    if proportions == Proportions():
        return pose
    scales = bone_scales(skeleton, proportions)
    rotation = pose[..., :3, :3].copy()  # (T, J, 3, 3)
    pose[..., :3, :3] = rotation @ scales
    above = rotation[:, skeleton.parents]
    offset = track.positions - track.positions[:, skeleton.parents]  # (T, J, 3)
    local = np.einsum("tjba,tjb->tja", above, offset)
    local = np.einsum("jab,tjb->tja", scales[skeleton.parents], local)
    positions = track.positions.copy()
    _hang(positions, np.einsum("tjab,tjb->tja", above, local), _links(skeleton))
    feet = _feet(skeleton)
    if feet:
        before = track.positions[:, feet, 1].min(axis=1)
        # Feet that grow need more room between ankle and ground.
        sole = float(skeleton.bind_position[feet, 1].min()) * (proportions.feet - 1)
        lift = before + max(sole, 0) - positions[:, feet, 1].min(axis=1)
        positions[..., 1] += lift[:, None]
    pose[..., :3, 3] = positions
    return pose


def _hang(positions: Array, offsets: Array, links: Links) -> None:
    """Set the positions (T, J, 3) of linked bones: their parent's plus their offset (T, J, 3)."""
    for bones, parents in links:
        positions[:, bones] = positions[:, parents] + offsets[:, bones]


def _tiers(parents: NDArray[np.int32], cut: ArrayLike = ()) -> Links:
    """Bones that have a parent and are not cut off from it; those of one depth at once."""
    depth = np.zeros(len(parents), np.int64)
    free = np.ones(len(parents), bool)
    free[np.asarray(cut, np.int64)] = False
    for bone in np.flatnonzero(free & (parents >= 0)):
        depth[bone] = depth[parents[bone]] + 1
    tiers = [np.flatnonzero(depth == tier) for tier in range(1, int(depth.max(initial=0)) + 1)]
    return [(bones, parents[bones].astype(np.int64)) for bones in tiers]


@remembered
def _links(skeleton: Skeleton) -> Links:
    """All bones that have a parent."""
    return _tiers(skeleton.parents)


def leg_length(skeleton: Skeleton) -> float:
    """Metres from hip over knee to ankle in the bind pose, mean of the sides; 0 if unknown.

    A skeleton without hips is measured from the pelvis.
    """
    lengths = []
    for side in ("_l", "_r"):
        hip = "hip" + side if "hip" + side in skeleton.joints else "pelvis"
        names = [hip, "knee" + side, "ankle" + side]
        if all(name in skeleton.joints for name in names):
            points = skeleton.bind_position[[skeleton.joints[name] for name in names]]
            lengths.append(float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum()))
    return sum(lengths) / len(lengths) if lengths else 0.0


@remembered
def growth(source: Skeleton, target: Skeleton) -> float:
    """How many times as long the target's legs are; without legs, the whole body."""
    theirs, ours = leg_length(source), leg_length(target)
    if not theirs or not ours:
        shared = sorted(source.joints.keys() & target.joints)
        theirs, ours = (
            float(np.ptp(s.bind_position[[s.joints[n] for n in shared]], axis=0).max(initial=0))
            for s in (source, target)
        )
    return ours / theirs if theirs and ours else 1.0


@remembered
def body_size(skeleton: Skeleton) -> float:
    """Metres between the outermost bones of the bind pose, along the axis where that is most."""
    return float(np.ptp(skeleton.bind_position, axis=0).max())


def same_body(a: Skeleton, b: Skeleton) -> bool:
    """Whether a track of one skeleton is a track of the other as it stands.

    Their bones are equal, and nearly all of the joints' bones are equally long; a foal has the
    horse's bones, but shorter ones.
    """
    if not _same_bones(a, b):
        return False
    bones = sorted(set(a.joints.values()) & set(b.joints.values()))
    child = np.array([bone for bone in bones if a.parents[bone] >= 0], np.int64)
    if not len(child):
        return True
    ours, theirs = (
        np.linalg.norm(s.bind_position[child] - s.bind_position[s.parents[child]], axis=-1)
        for s in (a, b)
    )
    long = np.maximum(ours, theirs) > 0.03 * np.ptp(a.bind_position[child], axis=0).max()
    ratio = np.abs(np.log(np.maximum(ours, 1e-6) / np.maximum(theirs, 1e-6)))[long]
    return not len(ratio) or float(np.percentile(ratio, 75)) < SAME_LENGTH


def _same_bones(a: Skeleton, b: Skeleton) -> bool:
    return a.bones == b.bones and np.array_equal(a.parents, b.parents)


def faced(skeleton: Skeleton) -> Skeleton:
    """The skeleton, turned about where it is bound facing -z, as the game's sheep is."""
    if not {"pelvis", "neck"} <= skeleton.joints.keys() or skeleton.body_plan == "biped":
        return skeleton
    at = skeleton.bind_position
    if at[skeleton.joints["neck"], 2] >= at[skeleton.joints["pelvis"], 2]:
        return skeleton
    half_turn = np.array([[0, 1, 0, 0]], np.float32)
    return replace(
        skeleton,
        bind_position=at * np.array([-1, 1, -1], np.float32),
        bind_rotation=quat_mul(half_turn, skeleton.bind_rotation),
    )


def retarget(track: Track, source: Skeleton, target: Skeleton, align: bool = True) -> Track:
    """Carry a track over to another skeleton of the same body plan.

    Bones that carry the same joint turn alike, relative to the bind pose; where the skeletons
    have the same bones, all of them do. With `align` both bind poses are first brought to agree
    limb by limb, so joint angles come out equal. Other bones follow their parents. The root's
    travel scales with the length of the legs, and the lowest foot is as high above the ground
    as the source's, to that scale.

    Args:
        track: Rotations (T, Js, 4) and positions (T, Js, 3) of the source skeleton.
        source: Skeleton the track was made for.
        target: Skeleton to be moved.
        align: Without it limbs turn alike but keep the stance of their own bind pose.

    Returns:
        Track of the target skeleton, (T, Jt, ...).
    """
    if same_body(source, target):
        return track
    if source.body_plan != target.body_plan:
        raise AssetError(
            f"cannot retarget {source.name} ({source.body_plan}) to {target.name} "
            f"({target.body_plan}): want one body plan"
        )
    plan = _plan(source, target, align)
    source, target = plan.source, plan.target
    count = len(track.rotations)
    rotations = np.tile(target.bind_rotation.astype(np.float32), (count, 1, 1))
    delta = quat_mul(track.rotations[:, plan.leader], quat_conj(source.bind_rotation[plan.leader]))
    rotations[:, plan.led] = quat_mul(delta, plan.rest)
    for bones, parents in plan.followers:
        rotations[:, bones] = quat_mul(rotations[:, parents], plan.lying[bones])
    positions = np.tile(target.bind_position.astype(np.float32), (count, 1, 1))
    travel = track.positions[:, plan.origin] - source.bind_position[plan.origin]  # (T, 3)
    positions[:, plan.root] += plan.longer * travel
    _hang(positions, quat_apply(rotations[:, target.parents], plan.offsets), plan.hanging)
    out = Track(rotations, positions)
    if target.body_plan == "quadruped":
        out = _level(track, source, out, target, plan.longer)
    theirs, ours = soles(source), soles(target)
    if theirs and ours:
        gap = _clearance(track, source, theirs, target, ours, plan.longer)
        out.positions[..., 1] += (gap - out.positions[:, ours, 1].min(axis=1))[:, None]
    return out


@dataclass(frozen=True)
class _Plan:
    """How `retarget` carries every motion of one skeleton over to another.

    `lying` and `offsets` mean nothing for a bone without parent.
    """

    source: Skeleton  # both face forwards
    target: Skeleton
    led: Bones  # (n,) bones of the target that turn as those of the source do
    leader: Bones  # (n,) which these are
    rest: Array  # (n, 4) rotations of the led bones while the source is in its bind pose
    followers: Links  # other bones
    lying: Array  # (J, 4) rotations in the frame of the parent, as bound
    root: int  # of the target; it travels as the origin does
    origin: int  # of the source
    longer: float  # how many times as far it travels
    hanging: Links  # all bones but the root
    offsets: Array  # (J, 3) metres in the frame of the parent


@remembered
def _plan(source: Skeleton, target: Skeleton, align: bool) -> _Plan:
    twin = _same_bones(source, target)
    source, target = faced(source), faced(target)
    named = {bone: name for name, bone in target.joints.items() if name in source.joints}
    like = {bone: bone for bone in range(len(target.bones)) if twin}  # target bone -> source bone
    like |= {bone: source.joints[name] for bone, name in named.items()}
    like |= _cannons(source, target)
    root = target.joints.get("pelvis", 0) if "pelvis" in source.joints else 0
    origin = source.joints.get("pelvis", 0)
    like.setdefault(root, origin)
    led = np.array(list(like), np.int64)
    parents, at, bind = target.parents, target.bind_position, target.bind_rotation
    rest = bind[led]
    if align:
        turns = [_align(named.get(bone, ""), source, target) for bone in like]
        rest = quat_mul(np.stack(turns), rest)
    unbind = quat_conj(bind[parents])
    return _Plan(
        source=source,
        target=target,
        led=led,
        leader=np.array(list(like.values()), np.int64),
        rest=rest,
        followers=_tiers(parents, led),
        lying=quat_mul(unbind, bind),
        root=root,
        origin=origin,
        longer=growth(source, target),
        hanging=_tiers(parents, [root]),
        offsets=quat_apply(unbind, at - at[parents]),
    )


def _cannons(source: Skeleton, target: Skeleton) -> dict[int, int]:
    """Bones below hocks that follow the source's shin, not its foot: target bone -> source bone.

    A deer's limbs, as named here, end well above the ground, a bear's at its paws; a cannon bone
    that rolled off as a paw does would stick out.
    """
    out = {}
    for joint, above in (("wrist", "elbow"), ("ankle", "knee")):
        for side in ("_l", "_r"):
            needed = {"pelvis", joint + side, above + side}
            shared = source.joints.keys() & target.joints
            if source.body_plan != "quadruped" or not needed <= shared:
                continue
            if _perch(target, joint + side) - _perch(source, joint + side) > HIGHER:
                out[target.joints[joint + side]] = source.joints[above + side]
    return out


def _perch(skeleton: Skeleton, joint: str) -> float:
    """Height of a wrist or ankle above the sole, in parts of the trunk's height."""
    floor = skeleton.bind_position[_below(skeleton, _base(joint)), 1].min()
    at = skeleton.bind_position[[skeleton.joints[joint], skeleton.joints["pelvis"]], 1] - floor
    return float(at[0] / max(at[1], 1e-6))


def _level(track: Track, source: Skeleton, out: Track, target: Skeleton, longer: float) -> Track:
    """Tilt a quadruped so that fore and hind feet are as far from the ground as the source's.

    One tilt for the clip: joint angles stay, and nothing jitters.
    """
    over, at = [], []
    for theirs, ours in zip(_fore_and_hind(source), _fore_and_hind(target), strict=True):
        if not theirs or not ours:
            return out
        lowest = out.positions[:, ours, 1].min(axis=1)
        over.append(lowest - _clearance(track, source, theirs, target, ours, longer))
        at.append(float(out.positions[:, ours, 2].mean()))
    length = at[0] - at[1]  # forefeet before hind feet, along +z
    if length < 1e-3:
        return out
    tilt = float(np.arctan2((over[0] - over[1]).mean(), length))
    turn = np.array([np.sin(tilt / 2), 0, 0, np.cos(tilt / 2)], dtype=np.float32)
    root = out.positions[:, :1]
    swung = quat_apply(np.broadcast_to(turn, out.rotations.shape), out.positions - root)
    return Track(quat_mul(turn[None, None], out.rotations), root + swung)


def _clearance(
    track: Track,
    source: Skeleton,
    theirs: list[int],
    target: Skeleton,
    ours: list[int],
    longer: float,
) -> Array:
    """(T,) metres: how high the lowest of our bones ought to be, going by theirs."""
    rise = track.positions[:, theirs, 1].min(axis=1) - source.bind_position[theirs, 1].min()
    return np.asarray(target.bind_position[ours, 1].min() + longer * rise, dtype=np.float32)


def _below(skeleton: Skeleton, joint: str) -> list[int]:
    """Bones at and below the joints of that name, both sides."""
    names = joint_of_bone(skeleton)
    wanted = (joint, "toe") if joint == "ankle" else (joint,)
    return [bone for bone, name in enumerate(names) if _base(name) in wanted]


@remembered
def _fore_and_hind(skeleton: Skeleton) -> tuple[list[int], list[int]]:
    """Bones of the hands or forefeet, and of the feet."""
    return _below(skeleton, "wrist"), _below(skeleton, "ankle")


@remembered
def soles(skeleton: Skeleton) -> list[int]:
    """Bones that may touch the ground when the body stands."""
    fore, hind = _fore_and_hind(skeleton)
    return fore + hind if skeleton.body_plan == "quadruped" else hind


@remembered
def _feet(skeleton: Skeleton) -> list[int]:
    """Bones that a body stands on."""
    names = ("ankle", "toe") if skeleton.body_plan != "quadruped" else ("ankle", "toe", "wrist")
    return [bone for name, bone in skeleton.joints.items() if _base(name) in names]


def _align(joint: str, source: Skeleton, target: Skeleton) -> Array:
    """Quaternion (4,) that turns the target's limb, as bound, into the source's direction."""
    base = _base(joint)
    below = NEXT_JOINT.get(base, "") + joint[len(base) :]
    # Necks rise or reach forward by nature: a giraffe with a wolf's neck is no giraffe.
    neck = base == "neck" and source.body_plan != "biped"
    if base not in NEXT_JOINT or neck or not {below} <= source.joints.keys() & target.joints:
        return np.array([0, 0, 0, 1], dtype=np.float32)

    def limb(skeleton: Skeleton) -> Array:
        ends = skeleton.bind_position[[skeleton.joints[joint], skeleton.joints[below]]]
        return np.asarray(ends[1] - ends[0], dtype=np.float32)

    return quat_between(limb(target), limb(source))


def lowest(cast: Cast, look: Look, pose: Array) -> Array:
    """(T,) metres: height of the lowest point of the body, tail and robes left out."""
    box = bounds(cast, look)
    chosen = box.chosen["lowest"]
    heights = skinning(cast.skeletons[look.skeleton], pose[:, :, 1:2])[:, box.bones[chosen], 0]
    heights = np.einsum("tnb,nb->tn", heights[..., :3], box.points[chosen]) + heights[..., 3]
    return np.asarray(heights.min(axis=1), dtype=np.float32)


def pose_clip(
    cast: Cast,
    look: Look,
    motion: Motion,
    times: Array,
    proportions: Proportions | None = None,
    end: End = "auto",
    stay: bool = True,
) -> Array:
    """Pose (T, J, 4, 4) of a look at times (T,) seconds of a motion, retargeted if need be.

    Args:
        cast: Holds both skeletons.
        look: Who moves.
        motion: A motion of the look's skeleton or of another of its body plan.
        times: (T,) seconds.
        proportions: Change of the body, if any.
        end: What happens past the motion's end.
        stay: Remove the smoothed travel over the ground.
    """
    source, target = cast.skeletons[motion.skeleton], cast.skeletons[look.skeleton]
    original = sample_motion(motion, times, end)
    track = retarget(original, source, target)
    pose = shape(target, track, proportions or Proportions())
    feet = soles(source)
    if feet and not same_body(source, target):
        # Bones of two skeletons lie at different heights in the foot; the skin tells the truth.
        soles_at = original.positions[:, feet, 1].min(axis=1)
        rise = np.maximum(soles_at - np.percentile(soles_at, 20), 0)
        wanted = rise * growth(source, target)
        pose[..., 1, 3] += (wanted - lowest(cast, look, pose))[:, None]
    elif feet and proportions is not None:
        change = lowest(cast, look, matrices(track)).min() - lowest(cast, look, pose).min()
        pose[..., 1, 3] += change
    if not stay:
        return pose
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    return in_place(pose, 0.4 / max(step, 1e-3), target.joints.get("pelvis", 0))
