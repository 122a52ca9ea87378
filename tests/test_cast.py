import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zeroad_art
from numpy.testing import assert_allclose

from dreamactor.errors import AssetError
from dreamactor.world.bake import encode_webp, role_of
from dreamactor.world.cast import (
    Cast,
    Look,
    Mesh,
    Motion,
    Part,
    Skeleton,
    load_cast,
    rotate,
    save_cast,
    subset,
    summary,
)
from dreamactor.world.clips import Clip, fits, group_clips, settled
from dreamactor.world.compile import build_cast, compile_art, group_of
from dreamactor.world.zeroad import METRES_PER_UNIT

MINI = Path(__file__).parents[1] / "dreamactor/data/mini.castpack"


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    q = rng.normal(size=shape).astype(np.float32)
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


@pytest.fixture
def cast() -> Cast:
    """Two looks on a chain of four bones and a free one; one motion with a fixed-length chain."""
    rng = np.random.default_rng(3)
    parents = np.array([-1, 0, 1, 2, -1], np.int32)
    rotations = unit(rng, 7, 5, 4)
    positions = rng.normal(size=(7, 5, 3)).astype(np.float32)
    for bone, parent in ((1, 0), (2, 1)):
        offset = rotate(rotations[:, parent], np.array([0.1, 0.4, 0.2], np.float32))
        positions[:, bone] = positions[:, parent] + offset
    skeleton = Skeleton(
        "s", tuple("abcde"), parents, rotations[0], positions[0], {"head": 3}, "other"
    )
    weights = rng.random((20, 4)).astype(np.float32)
    mesh = Mesh(
        rng.normal(size=(20, 3)).astype(np.float32),
        unit(rng, 20, 3),
        rng.random((20, 2)).astype(np.float32),
        rng.integers(0, 20, (9, 3)).astype(np.uint32),
        rng.integers(0, 5, (20, 4)).astype(np.uint8),
        weights / weights.sum(1, keepdims=True),
    )
    part = Part("m", "t", "body", cutout=True)
    look = Look("x", "animal", "s", (part,), "a beast", "g", "test", (0.1, 0.2, 0.3), ("walk",))
    motion = Motion("walk", "s", 30.0, rotations, positions, "walks", "walk", "train", True)
    picture = encode_webp(np.full((4, 6, 4), (200, 30, 20, 0), np.uint8))
    return Cast(
        {"s": skeleton},
        {"m": mesh, "n": mesh},
        {"x": look, "y": replace(look, name="y", parts=(replace(part, mesh="n"),), motions=())},
        {"walk": motion},
        {"t": picture, "ground": picture},
        ("ground",),
        "",
    )


def test_pack_returns_what_was_saved(cast: Cast, tmp_path: Path):
    digest = save_cast(cast, tmp_path / "a.castpack")
    loaded = load_cast(tmp_path / "a.castpack")
    assert loaded.digest == digest
    assert loaded.looks == cast.looks
    assert loaded.textures == cast.textures
    assert loaded.terrains == cast.terrains
    skeleton, mesh, motion = loaded.skeletons["s"], loaded.meshes["m"], loaded.motions["walk"]
    assert skeleton.joints == {"head": 3}
    assert_allclose(skeleton.bind_position, cast.skeletons["s"].bind_position)
    wanted = cast.meshes["m"]
    assert_allclose(mesh.positions, wanted.positions, atol=1e-4)
    assert_allclose(mesh.normals, wanted.normals, atol=0.01)
    assert_allclose(mesh.uvs, wanted.uvs, atol=1e-3)
    assert_allclose(mesh.bone_weights, wanted.bone_weights, atol=0.01)
    assert_allclose(mesh.bone_weights.sum(1), 1, rtol=1e-6)
    assert (mesh.faces == wanted.faces).all()
    assert (mesh.bone_indices == wanted.bone_indices).all()
    assert_allclose(motion.rotations, cast.motions["walk"].rotations, atol=1e-4)
    assert_allclose(motion.positions, cast.motions["walk"].positions, atol=1e-3)
    assert (motion.fps, motion.loops, motion.split) == (30.0, True, "train")


def test_same_cast_gives_the_same_bytes(cast: Cast, tmp_path: Path):
    backwards = replace(cast, looks=dict(reversed(cast.looks.items())))
    assert save_cast(cast, tmp_path / "a") == save_cast(backwards, tmp_path / "b")


def test_texture_keeps_colour_where_alpha_is_zero(cast: Cast):
    picture = cast.texture("t")
    assert picture.shape == (4, 6, 4)
    assert_allclose(picture[0, 0], (200, 30, 20, 0), atol=6)
    with pytest.raises(AssetError, match="'nothing' is not in the pack; there is ground"):
        cast.texture("nothing")


def test_subset_keeps_only_what_its_looks_need(cast: Cast):
    part = subset(cast, {"y"}, set(), set())
    assert (set(part.looks), set(part.meshes), set(part.textures)) == ({"y"}, {"n"}, {"t"})
    assert (part.motions, part.terrains) == ({}, ())
    assert subset(cast, {"x"}, {"walk"}, {"ground"}).looks["x"].motions == ("walk",)


def test_summary_counts_by_split(cast: Cast):
    assert "animal looks            2           0           0           2" in summary(cast)


def rewritten(source: Path, target: Path, compress: int = zipfile.ZIP_STORED, **changes) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compress) as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "cast.json":
                content = json.dumps(json.loads(content) | changes).encode()
            new.writestr(name, content)
    return target


def test_refuses_packs_that_are_missing_damaged_or_of_another_version(cast: Cast, tmp_path: Path):
    good = tmp_path / "good"
    save_cast(cast, good)
    with pytest.raises(AssetError, match=r"no such cast pack; .* `dreamactor world build`"):
        load_cast(tmp_path / "none")
    with pytest.raises(AssetError, match="schema 7, want 1"):
        load_cast(rewritten(good, tmp_path / "new", schema=7))
    with pytest.raises(AssetError, match="compressed"):
        load_cast(rewritten(good, tmp_path / "deflated", zipfile.ZIP_DEFLATED))
    with pytest.raises(AssetError, match="damaged cast pack"):
        load_cast(rewritten(good, tmp_path / "poor", motion_sets=[["dance"]]))
    with pytest.raises(AssetError, match="damaged"):
        load_cast(rewritten(good, tmp_path / "torn", meshes=[]))
    cut = tmp_path / "cut"
    cut.write_bytes(good.read_bytes()[:-200])
    with pytest.raises(AssetError, match="not a cast pack or damaged"):
        load_cast(cut)


def test_compiles_a_look_with_a_baked_prop(tmp_path: Path):
    zeroad_art.write_folder(tmp_path / "art_folder")
    lines: list[str] = []
    cast = build_cast(tmp_path / "art_folder", tmp_path / "a.castpack", say=lines.append)
    again = build_cast(tmp_path / "art_folder", tmp_path / "b.castpack")
    assert cast.digest == again.digest
    assert "left out: 1 x clip without motion" in lines
    assert list(cast.motions) == ["other/shark_run"]
    looks = list(cast.looks.values())
    assert {p.texture for look in looks for p in look.parts} <= {"grey", "grey~2", "blue"}
    body, hat = looks[0].parts
    assert (body.role, hat.role, len(looks[0].parts)) == ("body", "other", 2)
    mesh = cast.meshes[hat.mesh]
    assert (mesh.bone_indices[:, 0] == 2).all()
    # The hat hangs half a unit above bone 2 and is turned by a quarter about y.
    bone = cast.skeletons["shark"].bind_position[2]
    hung = (mesh.positions - bone) / METRES_PER_UNIT
    assert_allclose(np.abs(hung), [[0, 0.5, 0], [0, 0.5, 1], [0, 1.5, 0]], atol=1e-3)
    assert cast.skeletons["shark"].joints == {"head": 0, "spine": 2, "tail": 4}
    assert cast.texture("blue")[0, 0].tolist() == pytest.approx([10, 20, 200, 255], abs=12)


def test_mini_pack_refuses_other_art(tmp_path: Path):
    zeroad_art.write_folder(tmp_path / "art_folder")
    with pytest.raises(AssetError, match="want 0 A"):
        build_cast(tmp_path / "art_folder", tmp_path / "a.castpack", mini=True)


def test_damaged_actors_are_left_out_and_counted(tmp_path: Path):
    from dreamactor.world.art import MemoryArt

    art = zeroad_art.files() | {"art/actors/fauna/rat.xml": b"<actor><group>"}
    cast, skipped = compile_art(MemoryArt(art))
    assert len(cast.looks) == 2
    assert sum(n for reason, n in skipped.items() if reason.startswith("actor")) == 1


def test_motions_fit_only_bodies_of_their_proportions(cast: Cast):
    skeleton, motion = cast.skeletons["s"], cast.motions["walk"]
    clip = Clip("other/walk", 30.0, motion.positions[:1].repeat(2, 0), motion.rotations[:2], True)
    used = np.ones(256, bool)
    assert fits(clip, skeleton, used)
    assert not fits(replace(clip, positions=clip.positions * 1.2), skeleton, used)
    assert not fits(replace(clip, name="biped/walk"), skeleton, used)
    assert not fits(replace(clip, positions=clip.positions[:, :4]), skeleton, used)


def test_bones_left_at_the_origin_follow_their_parents(cast: Cast):
    skeleton, motion = cast.skeletons["s"], cast.motions["walk"]
    positions, rotations = motion.positions.copy(), motion.rotations.copy()
    positions[:, 2], rotations[:, 2] = 0, (0, 0, 0, 1)
    clip = settled(Clip("other/walk", 30.0, positions, rotations, True), skeleton)
    kept = [0, 1, 3, 4]
    assert_allclose(clip.positions[:, kept], positions[:, kept])
    # Bone 2 keeps the place that it has by its parent in the bind pose, which is frame 0's.
    assert_allclose(clip.positions[:, 2], motion.positions[:, 2], atol=1e-5)
    assert_allclose(np.abs((clip.rotations[0, 2] * motion.rotations[0, 2]).sum()), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "mesh", "role"),
    [
        ("props/units/shields/aspis_a.xml", "props/shield/aspis_01_front", "shield"),
        ("props/units/shields/props/aspis_b.xml", "props/shield/aspis_01_back", "shield"),
        ("props/units/shields/props/grip.xml", "props/shield/props/aspis_handgrip_01", "shield"),
        ("props/units/weapons/spear.xml", "props/spear_hoplite", "weapon"),
        ("props/units/weapons/sheath.xml", "props/weapons/sheath_xiphos", "other"),
    ],
)
def test_all_of_a_shield_is_shield(path: str, mesh: str, role: str):
    assert role_of(path, mesh) == role


def test_takes_and_lookalikes_share_a_group(cast: Cast):
    motion = cast.motions["walk"]
    clip = Clip("other/walk_01", 30.0, motion.positions, motion.rotations, True)
    far = motion.positions * 1.5
    clips = [
        clip,
        replace(clip, name="other/walk_02", positions=far),
        replace(clip, name="other/march"),
        replace(clip, name="other/run", positions=-far),
    ]
    groups = group_clips(clips, [0, 1, 2, 3])
    assert groups["other/walk_01"] == groups["other/walk_02"] == groups["other/march"]
    assert groups["other/run"] == "other/run"


@pytest.mark.parametrize(
    ("path", "domain", "group"),
    [
        ("units/romans/infantry_swordsman_b.xml", "human", "romans/infantry_swordsman"),
        ("units/romans/infantry_swordsman_c2.xml", "human", "romans/infantry_swordsman"),
        ("units/han/cavalry_archer_e_r.xml", "human", "han/cavalry_archer"),
        ("fauna/deer2.xml", "animal", "deer"),
        ("fauna/lioness.xml", "animal", "lion"),
        ("fauna/elephant_african_baby.xml", "animal", "elephant"),
        ("fauna/pony.xml", "animal", "horse"),
    ],
)
def test_group_joins_what_shares_art(path: str, domain: str, group: str):
    assert group_of(path, domain) == group


@pytest.fixture(scope="module")
def mini() -> Cast:
    if not MINI.exists():
        pytest.skip("no mini pack in this checkout")
    return load_cast(MINI)


def test_mini_pack_holds_out_identities_and_motions(mini: Cast):
    for things in (mini.looks, mini.motions):
        assert {t.split for t in things.values()} == {"train", "validation", "test"}
        groups: dict[str, set[str]] = {}
        for thing in things.values():
            groups.setdefault(thing.group, set()).add(thing.split)
        assert all(len(splits) == 1 for splits in groups.values())
    assert MINI.stat().st_size < 8_000_000


def test_mini_pack_is_the_right_way_round(mini: Cast):
    for look in mini.looks.values():
        skeleton = mini.skeletons[look.skeleton]
        motion = mini.motions[next(m for m in look.motions if "walk" in m)]
        place = {j: motion.positions[:, b].mean(0) for j, b in skeleton.joints.items()}
        for joint in (j for j in place if j.endswith("_l")):
            assert place[joint][0] > place[joint[:-1] + "r"][0], (look.name, joint)
        assert place["ankle_l"][1] < place["hip_l"][1] if "hip_l" in place else True
        assert place["head"][1] > place["ankle_l"][1]
        if look.domain == "animal":
            assert place["head"][2] > place["pelvis"][2]


def test_mini_pack_triangles_face_outwards(mini: Cast):
    for look in mini.looks.values():
        mesh = mini.meshes[look.parts[0].mesh]
        a, b, c = np.moveaxis(mesh.positions[mesh.faces], 1, 0)
        agree = (np.cross(b - a, c - a) * mesh.normals[mesh.faces].mean(1)).sum(-1) > 0
        assert agree.mean() > 0.95, look.name


def test_mini_pack_people_are_whole(mini: Cast):
    for look in (x for x in mini.looks.values() if x.domain == "human"):
        skeleton = mini.skeletons[look.skeleton]
        roles = {p.role: mini.meshes[p.mesh] for p in look.parts}
        head = skeleton.bind_position[skeleton.joints["head"]]
        assert np.linalg.norm(roles["head"].positions.mean(0) - head) < 0.25, look.name
        if "shield" in roles:
            wrist = skeleton.bind_position[skeleton.joints["wrist_l"]]
            gap = np.linalg.norm(roles["shield"].positions - wrist, axis=1).min()
            assert gap < 0.35, look.name
        assert 3 <= len(look.caption.split()) <= 15
