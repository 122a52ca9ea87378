from pathlib import Path

import numpy as np
import pytest
import zeroad_art
from numpy.testing import assert_allclose

from dreamactor.errors import AssetError
from dreamactor.world.anatomy import find_joints
from dreamactor.world.art import MemoryArt, open_art
from dreamactor.world.bake import apply_alpha, multiply, shrink
from dreamactor.world.captions import describe_animal, describe_human, describe_motion
from dreamactor.world.cast import rotate
from dreamactor.world.zeroad import (
    METRES_PER_UNIT,
    Actors,
    alpha_meaning,
    mirror_position,
    mirror_rotation,
    read_animation,
    read_mesh,
    read_skeletons,
    read_texture,
)


def test_mesh_is_mirrored_and_scaled_exactly():
    positions = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]])
    mesh = read_mesh(zeroad_art.pmd(positions, zeroad_art.bind_pose()), "m")
    assert_allclose(mesh.positions, positions * [1, 1, -1] * METRES_PER_UNIT, rtol=1e-6)
    assert_allclose(mesh.uvs, [[0.25, 0.25]] * 3)
    assert_allclose(mesh.normals, [[0, 0, 1]] * 3)
    assert mesh.bone_indices[:, 0].tolist() == [0, 1, 2]
    assert_allclose(mesh.bone_weights.sum(1), 1)
    assert mesh.faces.tolist() == [[0, 1, 2]]


def test_mirroring_commutes_with_rotating():
    rng = np.random.default_rng(1)
    turn = rng.normal(size=4)
    turn /= np.linalg.norm(turn)
    vector = rng.normal(size=3)
    ours = rotate(mirror_rotation(turn), mirror_position(vector))
    assert_allclose(ours, mirror_position(rotate(turn, vector)), atol=1e-6)


def test_multiplied_quaternions_rotate_one_after_the_other():
    rng = np.random.default_rng(2)
    a, b = (mirror_rotation(rng.normal(size=4)) for _ in range(2))
    vector = rng.normal(size=3).astype(np.float32)
    assert_allclose(rotate(multiply(a, b), vector), rotate(a, rotate(b, vector)), atol=1e-5)


def test_animation_has_the_frames_and_rate_of_the_file():
    keys = np.zeros((5, 3, 7))
    keys[..., 6] = 1
    keys[:, 1, 2] = np.arange(5)
    clip = read_animation(zeroad_art.psa(keys, milliseconds=40), "a")
    assert clip.fps == pytest.approx(25)
    assert_allclose(clip.positions[:, 1, 2], -np.arange(5) * METRES_PER_UNIT, rtol=1e-6)


@pytest.mark.parametrize("read", [read_mesh, read_animation])
def test_refuses_truncated_files(read):
    whole = zeroad_art.pmd(np.eye(3)) if read is read_mesh else zeroad_art.psa(np.ones((2, 2, 7)))
    read(whole, "whole")
    for length in (20, len(whole) - 1):
        with pytest.raises(AssetError, match=r"bytes, want at least|want b'PS"):
            read(whole[:length], "cut")
    with pytest.raises(AssetError, match="starts with b'no"):
        read(b"nonsense" + whole, "odd")


def test_refuses_old_mesh_versions():
    with pytest.raises(AssetError, match="version 2, want 3 or 4"):
        read_mesh(zeroad_art.pmd(np.eye(3), version=2), "old")


def test_skeleton_bones_are_numbered_depth_first():
    names, parents = read_skeletons(zeroad_art.files()["art/skeletons/shark.xml"], "s")["s"]
    assert names[:6] == ("Head", "Front", "Middle", "Back", "Tail", "End")
    assert parents == [-1, -1, 1, 2, 3, 4, 1, 1, 1]


def test_actor_merges_variants_and_never_offers_those_of_frequency_zero():
    actors = Actors(MemoryArt(zeroad_art.files()))
    offered = []

    def choose(group, names, frequencies):
        offered.append(tuple(names))
        return len(names) - 1

    actor = actors.resolve("fauna/shark.xml", choose)
    assert (actor.mesh, actor.texture) == ("skeletal/shark.dae", "blue.png")
    assert offered == [("",), ("a", "b"), ("idle",)]
    assert actor.props["top"] == ("props/hat.xml",)
    assert actors.resolve("fauna/shark.xml", lambda *_: 0).texture == "grey.png"


def test_alpha_is_what_the_material_says():
    art = MemoryArt(
        zeroad_art.files()
        | {
            "art/materials/basic_trans.xml": b"<material><alpha_blending/></material>",
            "art/materials/hair.xml": b'<m><define name="USE_OBJECTCOLOR" value="1"/></m>',
        }
    )
    names = ("player_trans.xml", "basic_trans.xml", "hair.xml", "missing.xml")
    assert [alpha_meaning(art, n) for n in names] == ["player", "cutout", "object", "none"]
    picture = np.array([[[100, 100, 100, 0], [100, 100, 100, 255]]], np.uint8)
    hair = apply_alpha(picture, "object", (0.5, 1.0, 0.0))
    assert hair.tolist() == [[[50, 100, 0, 255], [100, 100, 100, 255]]]
    assert apply_alpha(picture, "player", None) is picture


def test_shrinking_keeps_colour_under_zero_alpha():
    picture = np.full((8, 16, 4), (10, 200, 30, 0), np.uint8)
    assert shrink(picture, 4).shape == (2, 4, 4)
    assert (shrink(picture, 4) == (10, 200, 30, 0)).all()


def test_zip_folder_and_package_give_the_same_art(tmp_path: Path):
    zeroad_art.write_folder(tmp_path / "game/data/mods/public")
    (tmp_path / "public.zip").write_bytes(zeroad_art.zip_bytes())
    (tmp_path / "0ad-data.deb").write_bytes(zeroad_art.deb_bytes())
    sources = [open_art(tmp_path / n) for n in ("game", "public.zip", ".", "0ad-data.deb")]
    contents = [{n: art.read(n) for n in art.names()} for art in sources]
    assert all(c == zeroad_art.files() for c in contents)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; want public.zip"),
        (b"PK\x03\x04 cut short", "public.zip, a 0 A.D. folder"),
        (
            b"!<arch>\nnot a package at all, but something else entirely, at length",
            "damaged|no mods",
        ),
        (zeroad_art.deb_bytes()[:-300], "damaged package"),
    ],
)
def test_refuses_what_is_not_the_game(tmp_path: Path, content, message):
    path = tmp_path / "source"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AssetError, match=message):
        open_art(path)
    with pytest.raises(AssetError, match="and no art/actors in it"):
        open_art(tmp_path)


def test_refuses_textures_and_xml_that_are_damaged():
    with pytest.raises(AssetError, match="grey"):
        read_texture(zeroad_art.files()["art/textures/skins/grey.png.cached.dds"][:40], "grey")
    with pytest.raises(AssetError, match="skeleton"):
        read_skeletons(b"<skeletons>", "skeleton.xml")


def test_sides_follow_the_body_not_the_names():
    bones = ("Head", "Tail", "LeftFin", "RightFin", "Middle")
    used = np.ones(5, bool)
    position = np.array([[0, 1, 1], [0, 1, -1], [0.3, 1, 0], [-0.3, 1, 0], [0, 1, 0]], np.float32)
    plain = ("Head", "Tail", "Fish_fin_L", "Fish_fin_R", "body")
    assert find_joints("shark", bones, used, position) == {"head": 0, "spine": 4, "tail": 1}
    whale = ("head", "tail", "fin_l", "fin_r", "spine")
    joints = find_joints("whale", whale, used, position)
    assert (joints["shoulder_l"], joints["shoulder_r"]) == (2, 3)
    mirrored = find_joints("whale", whale, used, position * [-1, 1, 1])
    assert (mirrored["shoulder_l"], mirrored["shoulder_r"]) == (3, 2)
    assert find_joints("whale", plain, ~used, position) == {}


def test_captions_are_plain_english():
    parts = [("body", "skeletal/new/m_tunic"), ("head", "head_beard"), ("shield", "aspis_01")]
    assert describe_human("units/spartans/infantry_spearman_b.xml", parts, False) == (
        "a bearded Spartan spearman with a round shield"
    )
    woman = describe_human("units/romans/female_citizen.xml", [("body", "new/f_dress")], True)
    assert woman == "a Roman woman in a long dress"
    assert describe_animal("fauna/bear_brown.xml", "bear", 1) == "a brown bear"
    assert describe_motion("biped/citizen/pray") == "prays with raised arms"
    assert describe_motion("quadraped/horse_gallop") == "gallops"
    assert describe_motion("biped/gatherer/carry_wood_f") == "walks carrying a load of wood"
