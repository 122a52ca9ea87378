"""Which bone of which 0 A.D. skeleton is which joint of the body.

A joint is the origin of the bone that starts there: the elbow is the origin of the forearm.
The game's helper bones called knee or elbow are targets of its animators, not joints.
Limbs with only three bones down to the ground give their three origins, top to bottom, even
where an anatomist would call the last one a fetlock.

Legend: J bones, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dreamactor.conditioning.skeleton import FORE, HIND, MIDDLE
from dreamactor.world.cast import Array

BodyPlan = Literal["biped", "quadruped", "bird", "fish", "other"]


@dataclass(frozen=True)
class Anatomy:
    """Bone names of the joints; left limbs only, the right ones follow from the names."""

    plan: BodyPlan
    middle: str  # head neck spine pelvis tail; "-" where there is none
    fore: str = ""  # shoulder elbow wrist of the left side
    hind: str = ""  # hip knee ankle of the left side
    meshes: str = ""  # told from other skeletons of as many bones by this word in the mesh name


_DOG_LEGS = ("FrontLeg1_L FrontLeg2_L FrontLeg3_L", "BackLeg1_L BackLeg2_L BackLeg3_L")
_OLD_LEGS = ("l_upperarm l_forearm l_hand", "l_thigh l_calf l_foot")

ANATOMY = {
    "biped": Anatomy(
        "biped", "head neck chest hip -", "arm_L forearm_L hand_L", "thigh_L leg_L foot_L"
    ),
    "horse": Anatomy(
        "quadruped",
        "head neck spine2 spine tail",
        "l_upperarm l_arm l_forearm",
        "l_thigh l_leg l_shin",
    ),
    "camelus": Anatomy(
        "quadruped",
        "Camelus_Head Camelus_Neck_01 Camelus_Spine1 Camelus_Pelvis Camelus_Tail",
        "Camelus_upperarm_L Camelus_Arm_L Camelus_Forearm_L",
        "Camelus_Thigh_L Camelus_Foreleg_L Camelus_Shin_L",
    ),
    "giraffe": Anatomy(
        "quadruped",
        "head neck_01 spine_02 spine_01 tail_01",
        "left_f_leg_top left_f_leg_mid left_f_leg_bottom",
        "left_r_leg_top left_r_leg_mid left_r_leg_bottom",
    ),
    "goat": Anatomy(
        "quadruped",
        "head neck spine back tail",
        "thigh_front_l calf_front_l foot_front_l",
        "thigh_back_l calf_back_l foot_back_l",
    ),
    "sheep": Anatomy(
        "quadruped",
        "Head Neck Body_Front Butt Tail",
        "Arm_Left Forearm_Left Hand_Left",
        "Leg_Left Shin_Left Foot_Left",
    ),
    "boar": Anatomy(
        "quadruped",
        "Boar_Head Boar_Neck Boar_Body Boar_Rear Boar_Tail",
        "Boar_Front_Leg_Left Boar_Forearm_Left Boar_Front_Foot_Left",
        "Boar_Back_Leg_Left Boar_Shin_Left Boar_Back_Foot_Left",
    ),
    "horse_old": Anatomy("quadruped", "head neck spine1 pelvis tail", *_OLD_LEGS),
    "deer": Anatomy(
        "quadruped", "head neck spine1 pelvis tail", "l_clavicle l_upperarm l_forearm", _OLD_LEGS[1]
    ),
    "wolf": Anatomy("quadruped", "Head Neck1 Bone_001 Bone_005 Tail1", *_DOG_LEGS),
    "mastiff": Anatomy("quadruped", "Head Neck1 spine2 spine1 Tail1", *_DOG_LEGS),
    "wolfhound": Anatomy(
        "quadruped", "Head Neck1 spine2 spine1 Tail1", *_DOG_LEGS, meshes="wolfhound"
    ),
    "fox_armature": Anatomy(
        "quadruped",
        "Fox_head Fox_Neck1 Fox_spine2 Fox_pelvis Fox_Tail1",
        "Fox_FrontLeg1_L Fox_FrontLeg2_L Fox_FrontLeg3_L",
        "Fox_BackLeg1_L Fox_BackLeg2_L Fox_BackLeg3_L",
        meshes="fox",
    ),
    "bovidae_skeleton": Anatomy(
        "quadruped",
        "Bovidae_Head Bovidae_Neck Bovidae_spine1 Bovidae_pelvis Bovidae_Tail",
        "Bovidae_FrontThigh_L Bovidae_FrontCalf_left Bovidae_FrontFoot_left",
        "Bovidae_RearThigh_L Bovidae_RearCalf_left Bovidae_RearFoot_left",
    ),
    "feline_blender": Anatomy(
        "quadruped",
        "head neck_1 spine_2 pelvis tail_1",
        "leg_front_top_L leg_front_mid_L leg_front_bot_L",
        "leg_back_top_L leg_back_mid_L leg_back_bot_L",
    ),
    "zebra": Anatomy(
        "quadruped",
        "head neck1 body rear_body tail_start",
        "left_leg left_shin left_foot",
        "rear_left_leg rear_left_shin rear_left_foot",
    ),
    "ursidae_armature": Anatomy(
        "quadruped",
        "Ursidae_Head Ursidae_Neck Ursidae_Spine_2 Ursidae_Pelvis -",
        "Ursidae_Arm_L Ursidae_Forearm_L Ursidae_Paw_L",
        "Ursidae_Leg_L Ursidae_Shin_L Ursidae_Ankle_L",
    ),
    "hippopotamus_armature": Anatomy(
        "quadruped",
        "Hippopotamidae_Head Hippopotamidae_Neck Hippopotamidae_Spine_1 Hippopotamidae_Pelvis -",
        "Hippopotamidae_Arm_L Hippopotamidae_Forearm_L Hippopotamidae_Paw_L",
        "Hippopotamidae_Leg_L Hippopotamidae_Foreleg_L Hippopotamidae_Ankle_L",
        meshes="hippo",
    ),
    "elephantidae_asian": Anatomy(
        "quadruped",
        "Elephantidae_Head Elephantidae_Vertebrae_Cervical Elephantidae_Vertebrae_Lumbar "
        "Elephantidae_Pelvis Elephantidae_Tail_1",
        "Elephantidae_Arm_L Elephantidae_Forearm_L Elephantidae_Hand_L",
        "Elephantidae_Leg_L Elephantidae_Shin_L Elephantidae_Foot_L",
    ),
    "elephant_blender": Anatomy(
        "quadruped",
        "head neck body_2 butt tail_1",
        "arm_left forearm_left hand_left",
        "leg_left shin_left foot_left",
    ),
    "rhino": Anatomy(
        "quadruped",
        "head neck spine2 rhino tail1",
        "shoulder_L leg_upper_L leg_L",
        "thigh_L leg_back_L foot_back_L",
    ),
    "crocodile": Anatomy(
        "quadruped",
        "TopJaw Neck Spine2 Tail1 Tail2",
        "FrontLKnee FrontLLeg FrontLFoot",
        "BackLKnee BackLLeg BackLFoot",
        meshes="croc",
    ),
    "chicken": Anatomy(
        "bird", "Head Neck_Low Body Rear Tail", "Wing_L - WingTip_L", "Leg_L Shin_L Foot_L"
    ),
    "peacock": Anatomy(
        "bird", "Head Neck1 Body - tailHolder_Top", "LeftWing - -", "LeftLeg LeftShin LeftFoot"
    ),
    "hawk": Anatomy("bird", "Head - Body - Tail", "Humerus_L Ulna_L Digit_L"),
    "shark": Anatomy("fish", "Head - Middle - Tail", meshes="shark"),
    "tuna": Anatomy("fish", "tuna_head tuna_neck tuna_spine - tuna_tail_02", meshes="tuna"),
    "whale": Anatomy("fish", "head body spine pelvis tail", "fin_l - -", meshes="whale"),
}


def skeleton_of(mesh: str, bones: int, counts: dict[str, int]) -> str | None:
    """The skeleton a mesh was rigged to, which its file does not say.

    Args:
        mesh: Name of the mesh, such as `skeletal/horse.dae`.
        bones: How many bones it has.
        counts: How many bones each skeleton has.
    """
    fitting = [n for n in ANATOMY if counts.get(n) == bones]
    stem = mesh.rsplit("/", 1)[-1].lower()
    named = [n for n in fitting if ANATOMY[n].meshes and ANATOMY[n].meshes in stem]
    plain = [n for n in fitting if not ANATOMY[n].meshes]
    return next(iter(named + plain), None)


def find_joints(
    skeleton: str, bones: tuple[str, ...], used: NDArray[np.bool_], position: Array
) -> dict[str, int]:
    """Joint name -> bone, for the joints that hold up in a pose.

    Left and right are decided by where the limbs are, since some skeletons name them the wrong
    way round: the left is where up x forwards points, and the head is forwards of the pelvis.

    Args:
        skeleton: A key of `ANATOMY`.
        bones: Names of its bones.
        used: (J,) whether the mesh or another bone needs the bone; others may lie anywhere.
        position: (J, 3) a standing pose, metres.
    """
    anatomy = ANATOMY[skeleton]
    joints: dict[str, int] = {}

    def add(joint: str, bone: str) -> None:
        if bone in bones and used[bones.index(bone)]:
            joints[joint] = bones.index(bone)

    for joint, bone in zip(MIDDLE, anatomy.middle.split(), strict=True):
        add(joint, bone)
    for chain, names in ((FORE, anatomy.fore), (HIND, anatomy.hind)):
        for joint, bone in zip(chain, names.split(), strict=False):
            add(joint, bone)
            add(joint[:-1] + "r", _other_side(bone, bones))
    for joint in [j for j in joints if j.endswith("_l")]:
        if joint[:-1] + "r" not in joints:
            del joints[joint]
    return _checked(joints, position, anatomy.plan)


def _other_side(bone: str, bones: tuple[str, ...]) -> str:
    pairs = (("Left", "Right"), ("left", "right"), ("FrontL", "FrontR"), ("BackL", "BackR"))
    swapped = [bone.replace(a, b) for a, b in pairs]
    swapped += [bone[:-1] + b for a, b in (("_L", "R"), ("_l", "r")) if bone.endswith(a)]
    swapped += ["r_" + bone[2:]] if bone.startswith("l_") else []
    return next((s for s in swapped if s != bone and s in bones), "")


def _checked(joints: dict[str, int], position: Array, plan: BodyPlan) -> dict[str, int]:
    """Swap sides that are named wrongly; drop limbs whose joints do not descend."""
    back = joints.get("hip_l") or joints.get("pelvis") or joints.get("tail") or joints.get("spine")
    front = joints.get("head")
    forward = np.array([0, 0, 1], np.float32)
    if plan != "biped" and front is not None and back is not None:
        forward = position[front] - position[back]
    left = np.cross(np.array([0, 1, 0], np.float32), forward)
    for joint in sorted(j for j in joints if j.endswith("_l")):
        right = joint[:-1] + "r"
        across = float((position[joints[joint]] - position[joints[right]]) @ left)
        if abs(across) < 0.01 * float(np.linalg.norm(left)):  # both on the spine: no limb joint
            del joints[joint], joints[right]
        elif across < 0:
            joints[joint], joints[right] = joints[right], joints[joint]
    if plan in ("biped", "quadruped"):
        for chain in (FORE, HIND):
            for side in "lr":
                limb = [c[:-1] + side for c in chain if c[:-1] + side in joints]
                heights = [float(position[joints[j], 1]) for j in limb]
                for upper, lower, joint in zip(heights, heights[1:], limb[1:], strict=False):
                    if lower > upper + 0.02:
                        del joints[joint]
    return joints
