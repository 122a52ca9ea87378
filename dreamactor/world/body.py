"""Bodies: change proportions, and carry a motion from one skeleton to another.

Shapes as in `pose`: T frames, J bones, poses (T, J, 4, 4) bone to world.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dreamactor.errors import AssetError
from dreamactor.world.camera import bounds, posed_bounds
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
    quat_matrix,
    quat_mul,
    sample_motion,
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
NEXT_JOINT = {"shoulder": "elbow", "elbow": "wrist", "hip": "knee", "knee": "ankle", "neck": "head"}


def _base(joint: str) -> str:
    """Joint name without side or number: elbow_l -> elbow, tail_2 -> tail."""
    return joint.split("_")[0]


def bone_scales(skeleton: Skeleton, proportions: Proportions) -> Array:
    """(J, 3, 3) scale of each bone's own frame, as `Proportions` asks."""
    joint = joint_of_bone(skeleton)
    scales = np.tile(np.eye(3, dtype=np.float32), (len(skeleton.bones), 1, 1))
    for bone, name in enumerate(joint):
        base = _base(name)
        if base not in LENGTH_OF:
            continue
        length = float(getattr(proportions, LENGTH_OF[base]))
        if base in WHOLE:
            scales[bone] *= length
            continue
        girth = proportions.girth
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
        if norm < 1e-5:
            scales[bone] *= length
            continue
        local = quat_apply(quat_conj(skeleton.bind_rotation[bone]), axis / norm)
        scales[bone] = girth * np.eye(3) + (length - girth) * np.outer(local, local)
    return scales


def shape(skeleton: Skeleton, track: Track, proportions: Proportions) -> Array:
    """Pose (T, J, 4, 4) of the track on a body of other proportions.

    Bones keep their rotations, joints stay connected, and the lower of the feet keeps its
    height above the ground.
    """
    if proportions == Proportions():
        return matrices(track)
    scales = bone_scales(skeleton, proportions)
    rotation = quat_matrix(track.rotations)  # (T, J, 3, 3)
    positions = track.positions.copy()
    for bone, parent in enumerate(skeleton.parents):
        if parent < 0:
            continue
        offset = track.positions[:, bone] - track.positions[:, parent]  # (T, 3)
        local = np.einsum("tba,tb->ta", rotation[:, parent], offset)
        local = np.einsum("ab,tb->ta", scales[parent], local)
        moved = np.einsum("tab,tb->ta", rotation[:, parent], local)
        positions[:, bone] = positions[:, parent] + moved
    feet = _feet(skeleton)
    if feet:
        before = track.positions[:, feet, 1].min(axis=1)
        # Feet that grow need more room between ankle and ground.
        sole = float(skeleton.bind_position[feet, 1].min()) * (proportions.feet - 1)
        lift = before + max(sole, 0) - positions[:, feet, 1].min(axis=1)
        positions[..., 1] += lift[:, None]
    out = matrices(Track(track.rotations, positions))
    out[..., :3, :3] = rotation @ scales
    return out


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
    twin = _same_bones(source, target)
    source, target = faced(source), faced(target)
    named = {bone: name for name, bone in target.joints.items() if name in source.joints}
    like = {bone: bone for bone in range(len(target.bones)) if twin}  # target bone -> source bone
    like |= {bone: source.joints[name] for bone, name in named.items()}
    like |= _cannons(source, target)
    count = len(track.rotations)
    bind = target.bind_rotation
    rotations = np.empty((count, len(target.bones), 4), dtype=np.float32)
    positions = np.empty((count, len(target.bones), 3), dtype=np.float32)
    longer = growth(source, target)
    root = target.joints.get("pelvis", 0) if "pelvis" in source.joints else 0
    origin = source.joints.get("pelvis", 0)
    like.setdefault(root, origin)
    travel = track.positions[:, origin] - source.bind_position[origin]  # (T, 3)
    for bone, parent in enumerate(target.parents):
        if bone in like:
            at = like[bone]
            delta = quat_mul(track.rotations[:, at], quat_conj(source.bind_rotation[at])[None])
            rest = bind[bone]
            if align:
                rest = quat_mul(_align(named.get(bone, ""), source, target), rest)
            rotations[:, bone] = quat_mul(delta, rest[None])
        elif parent >= 0:
            local = quat_mul(quat_conj(bind[parent]), bind[bone])
            rotations[:, bone] = quat_mul(rotations[:, parent], local[None])
        else:
            rotations[:, bone] = bind[bone]
        if bone == root:
            positions[:, bone] = target.bind_position[bone] + longer * travel
        elif parent >= 0:
            offset = target.bind_position[bone] - target.bind_position[parent]
            offset = quat_apply(quat_conj(bind[parent]), offset)
            moved = quat_apply(rotations[:, parent], np.tile(offset, (count, 1)))
            positions[:, bone] = positions[:, parent] + moved
        else:
            positions[:, bone] = target.bind_position[bone]
    out = Track(rotations, positions)
    if target.body_plan == "quadruped":
        out = _level(track, source, out, target, longer)
    theirs, ours = _soles(source), _soles(target)
    if theirs and ours:
        gap = _clearance(track, source, theirs, target, ours, longer)
        out.positions[..., 1] += (gap - out.positions[:, ours, 1].min(axis=1))[:, None]
    return out


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
    for joint in ("wrist", "ankle"):
        theirs, ours = _below(source, joint), _below(target, joint)
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


def _soles(skeleton: Skeleton) -> list[int]:
    """Bones that may touch the ground when the body stands."""
    fore = _below(skeleton, "wrist") if skeleton.body_plan == "quadruped" else []
    return fore + _below(skeleton, "ankle")


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
    feet = np.array([_base(name) in ("wrist", "ankle", "toe") for name in box.joints])
    chosen = box.body & feet if (box.body & feet).any() else box.body
    heights = posed_bounds(cast, look, pose)[:, chosen, 1]
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
    soles = _soles(source)
    if soles and not same_body(source, target):
        # Bones of two skeletons lie at different heights in the foot; the skin tells the truth.
        soles_at = original.positions[:, soles, 1].min(axis=1)
        rise = np.maximum(soles_at - np.percentile(soles_at, 20), 0)
        wanted = rise * growth(source, target)
        pose[..., 1, 3] += (wanted - lowest(cast, look, pose))[:, None]
    elif soles and proportions is not None:
        change = lowest(cast, look, matrices(track)).min() - lowest(cast, look, pose).min()
        pose[..., 1, 3] += change
    if not stay:
        return pose
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    return in_place(pose, 0.4 / max(step, 1e-3), target.joints.get("pelvis", 0))
