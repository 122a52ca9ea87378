"""Compiles 0 A.D. art into a cast pack: who is in it, what they can do, who is held out.

    build_cast("0ad-data_0.0.26-1_all.deb", "full.castpack")

Splits are made by group (an actor with all its ranks, an animal species, a motion with all its
takes), by a stable hash, so that the same group is held out in every pack.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import AssetError
from dreamactor.world import small
from dreamactor.world.anatomy import ANATOMY, find_joints, skeleton_of
from dreamactor.world.art import Art, open_art
from dreamactor.world.bake import Baker, encode_webp, shrink
from dreamactor.world.captions import describe_animal, describe_human
from dreamactor.world.cast import Cast, Look, Part, Skeleton, Split, load_cast, save_cast, subset
from dreamactor.world.clips import Clip, faced, fits, group_clips, read_clips, settled
from dreamactor.world.zeroad import Actor, Actors, read_skeletons, read_texture

LOOKS_PER_ACTOR = {"human": 2, "animal": 4}
_TINTS = (  # the game's player colours
    (0.08, 0.22, 0.58), (0.59, 0.08, 0.08), (0.34, 0.65, 0.02), (0.90, 0.90, 0.29),
    (0.20, 0.67, 0.67), (0.63, 0.31, 0.78), (0.86, 0.45, 0.06), (0.25, 0.25, 0.25),
)  # fmt: skip
_SALT = {"human": "a", "animal": "k", "motion": "w"}
"""The animals' salt was chosen so that at least six species are held out for testing; the
motions' so that walking, running, fighting, working and dying are among the held out."""

_NOT_SHOWN = re.compile(
    r"nuba|_circle|shoal|flaming|fish_generic|plane|siege_|ballista|elephant(ry)?_archer|"
    r"seagull"  # its wings are shorter than the bones of the hawk it borrows
)
_NO_BODY = re.compile(r"f_naked")  # bare-breasted; the package is for everyone
_MOUNTS = re.compile(r"skeletal/(horse|pony|donkey|camel)")

TERRAINS = (
    "temperate/grass_01.png", "medit_grass_field.dds", "grass1_spring.dds", "alpine_grass.png",
    "savanna_grass_a.dds", "sahara/sand_01.png", "desert_sand_dunes_100.dds",
    "desert_sand_smooth.dds", "dirt_brown_a.dds", "medit_dirt.dds", "desert_dirt_rough.dds",
    "aegean_anatolia/dirt_01.png", "alpine_snow_a.dds", "alpine_arctic/snow_01.png",
    "alpine_arctic/gravel_dirt_01.png", "medit_city_tile.dds", "desert_city_tile.dds",
    "india/paving_01.png", "medit_rocks.dds", "temperate/forestfloor_01.png",
    "desert_lakebed_dry.dds", "aegean_anatolia/paving_01.png",
)  # fmt: skip
TERRAIN_SIDE = 512


@dataclass(frozen=True)
class Draft:
    """A look before it is known which motions suit it."""

    look: Look
    actor: Actor
    skeleton: str


def build_cast(
    source: str | Path,
    target: str | Path,
    *,
    mini: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Cast:
    """Compile a pack and return it as loaded from `target`.

    Args:
        source: What `art.open_art` takes.
        target: The pack to write; its bytes depend on the art only.
        mini: Only the few looks and motions of `small.py`.
        say: Told how far it is.

    Raises:
        AssetError: `source` is not readable 0 A.D. art.
    """
    cast, skipped = compile_art(open_art(source), say)
    if mini:
        cast = subset(cast, *small.choose(cast))
    save_cast(cast, target)
    for reason, count in sorted(skipped.items()):
        say(f"left out: {count} x {reason}")
    return load_cast(target)


def compile_art(
    art: Art, say: Callable[[str], None] = lambda line: None
) -> tuple[Cast, Counter[str]]:
    """Compile everything; also says how many things were left out and why."""
    names = art.names()
    bones = _skeletons(art, names)
    actors = Actors(art)
    baker = Baker(actors)
    drafts: list[Draft] = []
    skeletons: dict[str, Skeleton] = {}
    for file in (n for n in names if n.startswith(("art/actors/units/", "art/actors/fauna/"))):
        path = file.removeprefix("art/actors/")
        if not _NOT_SHOWN.search(path):
            drafts += _looks_of(path, actors, baker, bones, skeletons)
    say(f"{len(drafts)} looks, {len(baker.meshes)} meshes, {len(baker.textures)} textures")
    clips = read_clips(art, names, baker.skipped)
    families: dict[str, list[str]] = {}
    for name in sorted(skeletons):
        families.setdefault(name.split("~")[0], []).append(name)
    used = {s: _used(s, drafts, baker) for s in skeletons}
    for name in skeletons:
        skeletons[name] = _with_joints(skeletons[name], used[name], clips)
    for name, skeleton in skeletons.items():
        if skeleton.body_plan == "bird":
            clips = [
                faced(c, skeleton.joints) if fits(c, skeleton, used[name]) else c for c in clips
            ]
    suits = {n: [c for c in clips if fits(c, s, used[n])] for n, s in skeletons.items()}
    homes: dict[str, str] = {}
    for name in sorted(suits):
        for clip in suits[name]:
            homes.setdefault(clip.name, name)
    motions = {}
    for family, members in families.items():
        here = [c for c in clips if homes.get(c.name) in members]
        if here:
            groups = group_clips(here, sorted(skeletons[family].joints.values()))
            for clip in here:
                group = groups[clip.name]
                split = _split("motion", group)
                home = homes[clip.name]
                motions[clip.name] = settled(clip, skeletons[home]).motion(home, group, split)
    baker.skipped["clip that fits no skeleton"] += len(clips) - len(motions)
    looks = {}
    for draft in drafts:
        suitable = tuple(c.name for c in suits[draft.skeleton] if _sensible(c, draft.look))
        if suitable:
            looks[draft.look.name] = replace(draft.look, motions=suitable)
        else:
            baker.skipped["look without motions"] += 1
    terrains = _terrains(art, baker)
    everything = Cast(skeletons, baker.meshes, looks, motions, baker.textures, terrains, digest="")
    say(f"{len(looks)} looks, {len(motions)} motions, {len(terrains)} terrains")
    return subset(everything, looks, motions, terrains), baker.skipped


def _skeletons(art: Art, names: list[str]) -> dict[str, tuple[tuple[str, ...], list[int]]]:
    """Bones and parents of the skeletons in `ANATOMY`."""
    found = {}
    for name in names:
        key = name.removeprefix("art/skeletons/").removesuffix(".xml")
        if name.startswith("art/skeletons/") and key in ANATOMY:
            found[key] = next(iter(read_skeletons(art.read(name), name).values()))
    return found


def _looks_of(
    path: str,
    actors: Actors,
    baker: Baker,
    bones: dict[str, tuple[tuple[str, ...], list[int]]],
    skeletons: dict[str, Skeleton],
) -> list[Draft]:
    """The distinct looks that an actor's variants give, at most `LOOKS_PER_ACTOR`."""
    drafts: list[Draft] = []
    seen: set[tuple[Part, ...]] = set()
    for number in range(max(LOOKS_PER_ACTOR.values())):
        name = f"{path.removesuffix('.xml')}#{number}"
        try:
            actor = actors.resolve(path, _chooser(name, path))
            if actor.mesh is None or "skeletal/" not in actor.mesh or _NO_BODY.search(actor.mesh):
                return drafts
            count = len(baker.raw(actor.mesh).bind_position)
            key = skeleton_of(actor.mesh, count, {k: len(b) for k, (b, _) in bones.items()})
            if key is None or (path.startswith("units/") and _MOUNTS.search(actor.mesh)):
                return drafts
            domain = "human" if key == "biped" else "animal"
            if number >= LOOKS_PER_ACTOR[domain]:
                return drafts
            before = Counter(baker.skipped)
            parts = tuple(baker.parts(actor, partial(_chooser, name)))
        except AssetError as fault:
            baker.skipped[f"actor: {str(fault).split(':', 1)[-1].strip()[:40]}"] += 1
            return drafts
        if domain == "human" and not any(p.role == "head" for p in parts):
            baker.skipped["person without a head"] += 1
            continue
        if parts in seen:
            baker.skipped = before
            continue
        seen.add(parts)
        skeleton = _skeleton_for(key, bones[key], actor, baker, skeletons)
        group = group_of(path, domain)
        caption = (
            describe_human(path, [(p.role, p.mesh) for p in parts], "/f_" in actor.mesh)
            if domain == "human"
            else describe_animal(path, parts[0].texture, len(parts))
        )
        look = Look(
            name=name,
            domain="human" if domain == "human" else "animal",
            skeleton=skeleton,
            parts=parts,
            caption=caption,
            group=group,
            split=_split(domain, group),
            tint=_TINTS[_number(name) % len(_TINTS)],
            motions=(),
        )
        drafts.append(Draft(look, actor, skeleton))
    return drafts


def _skeleton_for(
    key: str,
    bones: tuple[tuple[str, ...], list[int]],
    actor: Actor,
    baker: Baker,
    skeletons: dict[str, Skeleton],
) -> str:
    """The skeleton with the bind pose of this body; `horse`, `horse~2`, ... are one family."""
    assert actor.mesh is not None
    raw = baker.raw(actor.mesh)
    free, count = key, 1
    while free in skeletons:
        known = skeletons[free]
        if np.allclose(known.bind_position, raw.bind_position, atol=2e-3) and np.allclose(
            np.abs((known.bind_rotation * raw.bind_rotation).sum(-1)), 1, atol=1e-4
        ):
            return free
        count += 1
        free = f"{key}~{count}"
    names, parents = bones
    skeletons[free] = Skeleton(
        name=free,
        bones=names,
        parents=np.asarray(parents, np.int32),
        bind_rotation=raw.bind_rotation,
        bind_position=raw.bind_position,
        joints={},
        body_plan=ANATOMY[key].plan,
    )
    return free


def _used(skeleton: str, drafts: Sequence[Draft], baker: Baker) -> NDArray[np.bool_]:
    """(J,) whether any body on the skeleton has vertices on the bone."""
    bodies = {d.look.parts[0].mesh for d in drafts if d.skeleton == skeleton}
    used = np.zeros(256, bool)
    for body in sorted(bodies):
        mesh = baker.meshes[body]
        used[mesh.bone_indices[mesh.bone_weights > 0.05]] = True
    return used


def _with_joints(skeleton: Skeleton, used: NDArray[np.bool_], clips: Sequence[Clip]) -> Skeleton:
    """Name the joints, judged in the first frame of a motion in which the body stands."""
    family = skeleton.name.split("~")[0]
    pose = skeleton.bind_position
    for clip in clips:
        if re.search("idle|walk|flight", clip.name) and fits(clip, skeleton, used):
            pose = clip.positions[0]
            break
    needed = used[: len(skeleton.bones)].copy()
    needed[skeleton.parents[needed & (skeleton.parents >= 0)]] = True
    joints = find_joints(family, skeleton.bones, needed, pose)
    return replace(skeleton, joints=joints)


def _sensible(clip: Clip, look: Look) -> bool:
    """Riders ride; nobody else sits in the air."""
    if look.domain != "human" or not re.search("/rider/|/fisher/|/chariot/", clip.name):
        return True
    return "/rider/" in clip.name and re.search("cavalry|camelry|elephant", look.name) is not None


def _terrains(art: Art, baker: Baker) -> tuple[str, ...]:
    terrains = []
    for name in TERRAINS:
        file = f"art/textures/terrain/types/{name}.cached.dds"
        try:
            picture = shrink(read_texture(art.read(file), file), TERRAIN_SIDE)
        except AssetError:
            baker.skipped["terrain missing"] += 1
            continue
        picture = picture.copy()
        picture[..., 3] = 255
        label = "terrain-" + re.sub(r"\.\w+$", "", name).replace("/", "-")
        baker.textures[label] = encode_webp(picture)
        terrains.append(label)
    return tuple(terrains)


def group_of(path: str, domain: str) -> str:
    """Actors that share most of their art: ranks and mounts of a unit, a species of animal."""
    stem = path.removesuffix(".xml").split("/", 1)[1]
    if domain == "human":
        while (shorter := re.sub(r"(_[a-e]|_[fmrhd]|_?\d+)$", "", stem)) != stem:
            stem = shorter
        return stem
    species = stem.split("/")[-1]
    if found := re.search("elephant|wolfhound|mastiff|wolf|lion|horse|pony|pig", species):
        return {"pony": "horse"}.get(found[0], found[0])
    return re.sub(r"(_.*|\d+)$", "", species)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _split(kind: str, group: str) -> Split:
    share = _number(f"{_SALT[kind]}/{kind}/{group}") % 100
    return "train" if share < 80 else "validation" if share < 90 else "test"


def _chooser(look: str, actor: str) -> Callable[[int, Sequence[str], Sequence[float]], int]:
    """Choose by frequency, by a hash of who wears what; the same everywhere."""

    def choose(group: int, names: Sequence[str], frequencies: Sequence[float]) -> int:
        shares = np.maximum(np.asarray(frequencies, np.float64), 0)
        shares = shares if shares.sum() > 0 else np.ones(len(names))
        at = _number(f"{look}|{actor}|{group}") / 2**48 * shares.sum()
        return int(min(np.searchsorted(np.cumsum(shares), at, side="right"), len(names) - 1))

    return choose
