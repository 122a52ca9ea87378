"""Properties of the renderer, on the box man and, where it ships, the mini pack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import boxman
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import dreamactor
from dreamactor.errors import AssetError, ConfigError, DreamActorError, ShapeError
from dreamactor.world.backdrops import backdrop
from dreamactor.world.body import pose_clip
from dreamactor.world.camera import frame_camera, orbit
from dreamactor.world.cast import load_cast
from dreamactor.world.pose import place, skinning
from dreamactor.world.render import Renderer, open_context
from dreamactor.world.scene import Actor, Background, Camera, Scene, Style

CAST = boxman.build()
FRAMES = 5
TIMES = np.arange(FRAMES) / 10
MINI = Path(dreamactor.__file__).parent / "data" / "mini.castpack"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    ready = Renderer(CAST)
    try:
        ready.context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    return ready


def _actor(look: str = "red", at=(0, 0, 0), heading=0.0, style: Style | None = None) -> Actor:
    pose = pose_clip(CAST, CAST.looks[look], CAST.motions["walk"], TIMES)
    return Actor(CAST.looks[look], place(pose, at, heading), style or Style())


def _scene(actors=None, side=128, background=None, **camera) -> Scene:
    actors = actors or (_actor(),)
    view = frame_camera(CAST, actors, **camera)
    return Scene(actors, view, background=background or Background(), height=side, width=side)


def _cut(scene: Scene, frames: slice) -> Scene:
    """Some frames of a scene."""
    view = scene.camera
    camera = Camera(view.eye[frames], view.target[frames], view.fov[frames], view.shift[frames])
    actors = tuple(replace(actor, pose=actor.pose[frames]) for actor in scene.actors)
    return replace(scene, actors=actors, camera=camera)


def test_exact_shapes_and_types(renderer):
    out = renderer.render(_scene(side=96), truth="all")
    assert out.rgb.shape == (FRAMES, 96, 96, 3)
    assert out.rgb.dtype == np.uint8
    assert out.mask.shape == (FRAMES, 96, 96)
    assert out.flow is not None
    assert out.flow.shape == (FRAMES - 1, 96, 96, 2)
    assert out.depth is not None
    assert out.depth.shape == (FRAMES, 96, 96)
    assert out.joints[0].pixels.shape == (FRAMES, 16, 2)


def test_exact_joints_lie_on_the_figure(renderer):
    out = renderer.render(_scene(azimuth=25), truth="visible")
    joints = out.joints[0]
    x, y = np.moveaxis(joints.pixels.astype(int), -1, 0)
    assert out.mask[np.arange(FRAMES)[:, None], y, x].all()
    assert joints.visible[:, joints.names.index("head")].all()


def test_exact_handedness_left_is_right_in_a_front_view_and_red(renderer):
    out = renderer.render(_scene(azimuth=0))
    joints = out.joints[0]
    assert (joints["shoulder_l"][:, 0] > joints["shoulder_r"][:, 0]).all()
    x, y = joints["elbow_l"][0].astype(int)
    red, _, blue = out.rgb[0, y, x].astype(int)
    assert red > blue + 30
    facing = joints["ankle_l"][0]  # toes point at the camera, so they lie below the ankle
    assert out.mask[0, int(facing[1]) + 1, int(facing[0])] == 1


@pytest.mark.parametrize("size", [0.5, 0.85])
@pytest.mark.parametrize("centre", [(0.0, 0.0), (0.3, -0.1)])
def test_exact_framing_fills_the_asked_height_at_the_asked_place(renderer, size, centre):
    out = renderer.render(_scene(side=200, size=size, centre=centre, azimuth=15))
    rows = np.flatnonzero(out.mask.any(axis=(0, 2)))
    assert np.ptp(rows) / 200 == pytest.approx(size, abs=0.03)
    middle = 1 - (rows[0] + rows[-1] + 1) / 200
    assert middle == pytest.approx(centre[1], abs=0.03)


def test_exact_flow_follows_points_of_the_surface(renderer):
    """Rendered flow at a projected vertex equals the step between its two projections."""
    scene = _scene(side=160, azimuth=orbit(10, 30, FRAMES))
    out = renderer.render(scene, truth="all")
    mesh, actor = CAST.meshes["box"], scene.actors[0]
    moves = skinning(CAST.skeletons["box"], actor.pose)[:, mesh.bone_indices[:, 0]]
    centres = mesh.positions[mesh.faces].mean(axis=1)  # inside their triangles
    moves = moves[:, mesh.faces[:, 0]]
    points = np.einsum("tfab,fb->tfa", moves[..., :3, :3], centres) + moves[..., :3, 3]
    pixels, depth = scene.camera.project(points, 160, 160)
    checked = 0
    for t in range(FRAMES - 1):
        x, y = np.moveaxis(pixels[t].astype(int), -1, 0)
        front = np.abs(out.depth[t, y, x] - depth[t]) < 0.005
        off = pixels[t] - (np.stack([x, y], -1) + 0.5)
        error = out.flow[t, y, x] - (pixels[t + 1] - pixels[t])
        # The pixel's centre is up to .7 px from the point; flow changes slowly in between.
        assert np.abs(error[front]).max() < 0.6
        assert np.median(np.abs(error[front])) < 0.1
        assert np.abs(off).max() <= 0.5 + 1e-3
        checked += int(front.sum())
    assert checked > 100
    assert_array_equal(out.flow[out.depth[:-1] == 0], 0)


def test_exact_surface_names_the_spot_that_is_seen(renderer):
    """exact: a spot, posed and projected, is the pixel that named it; the same in any style."""
    scene = _scene(side=160, azimuth=orbit(10, 30, FRAMES))
    surface = renderer.surface(scene)
    mesh, actor = CAST.meshes["box"], scene.actors[0]
    moves = skinning(CAST.skeletons["box"], actor.pose)
    y, x = np.mgrid[:160, :160]
    for t in range(FRAMES):
        shown = np.isfinite(surface[t]).all(axis=-1)
        assert_array_equal(shown, renderer.render(scene, truth="all").depth[t] > 0)
        spots = surface[t][shown]
        apart = np.linalg.norm(spots[:, None] - mesh.positions[None], axis=-1)
        bone = mesh.bone_indices[apart.argmin(axis=1), 0]
        points = np.einsum("nab,nb->na", moves[t, bone, :3, :3], spots) + moves[t, bone, :3, 3]
        pixels, _ = scene.camera.project(points[None].repeat(FRAMES, 0), 160, 160)
        off = np.abs(pixels[t] - np.stack([x[shown], y[shown]], -1) - 0.5).max(axis=-1)
        assert np.median(off) < 1e-3  # the nearest vertex of some is another box's


@pytest.mark.parametrize("background", [Background("bokeh"), Background("terrain", texture="soil")])
def test_unchanged_by_the_clip_a_frame_is_drawn_in(renderer, background):
    scene = _scene(background=background, azimuth=orbit(0, 40, FRAMES))
    scene = replace(scene, light=replace(scene.light, follow=False))
    whole = renderer.render(scene)
    for t in range(FRAMES):
        alone = renderer.render(_cut(scene, slice(t, t + 1)))
        assert (alone.mask[0] == whole.mask[t]).mean() > 0.9999
        empty = (alone.mask[0] == 0) & (whole.mask[t] == 0)
        apart = np.abs(alone.rgb[0].astype(int) - whole.rgb[t])
        # A tile's place in the strip moves a figure by 1e-4 px: edge samples may differ.
        assert (apart.max(axis=-1) > 2).mean() < 0.001
        assert (apart[empty].max(axis=-1) > 0).mean() < 0.001


def test_unchanged_by_splitting_a_clip_into_strips(renderer, monkeypatch):
    scene = _scene(azimuth=20)
    whole = renderer.render(scene, truth="all")
    monkeypatch.setattr("dreamactor.world.render.STRIP_ROWS", 2 * 128)
    strips = renderer.render(scene, truth="all")
    assert (strips.rgb != whole.rgb).mean() < 0.001
    assert_allclose(np.abs(strips.flow - whole.flow).mean(), 0, atol=1e-3)


def test_unchanged_by_drawing_again_and_in_another_context(renderer):
    scene = _scene((_actor(style=Style("toon", recolour=1, seed=3)),))
    first = renderer.render(scene)
    renderer.render(_scene((_actor("lanky"),), side=64))
    assert_array_equal(renderer.render(scene).rgb, first.rgb)
    assert_array_equal(Renderer(CAST).render(scene).rgb, first.rgb)


def test_exact_mask_names_two_actors_and_the_nearer_hides_the_other(renderer):
    front, back = _actor(at=(0, 0, 1)), _actor("lanky", at=(0.6, 0, -1))
    out = renderer.render(_scene((front, back), azimuth=0), truth="visible")
    assert set(np.unique(out.mask)) == {0, 1, 2}
    other = renderer.render(_scene((back, front), azimuth=0))
    assert_array_equal(np.where(other.mask == 0, 0, 3 - other.mask), out.mask)
    hidden = _actor("red", at=(0, 0, -2))
    out = renderer.render(_scene((front, hidden), azimuth=0), truth="visible")
    spine = out.joints[1].names.index("spine")
    assert not out.joints[1].visible[:, spine].any()
    assert out.joints[0].visible[:, spine].all()


def test_exact_follow_keeps_a_walker_in_the_middle(renderer):
    look, motion = CAST.looks["red"], CAST.motions["stroll"]
    times = np.linspace(0, 1.9, 12)
    walker = Actor(look, pose_clip(CAST, look, motion, times, stay=False))
    camera = frame_camera(CAST, walker, azimuth=90, follow=True)
    out = renderer.render(Scene((walker,), camera, height=96, width=96))
    columns = [np.flatnonzero(m.any(axis=0)).mean() for m in out.mask]
    assert_allclose(columns, 47.5, atol=8)
    still = frame_camera(CAST, walker, azimuth=90)
    fixed = renderer.render(Scene((walker,), still, height=96, width=96))
    assert not fixed.mask[:, :, [0, -1]].any()
    assert np.ptp([np.flatnonzero(m.any(axis=0)).mean() for m in fixed.mask]) > 30


def test_exact_dropped_roles_are_not_drawn(renderer):
    bare = replace(_actor(), drop=frozenset({"body"}))
    scene = replace(_scene(), actors=(bare,))
    assert not renderer.render(scene).mask.any()


def test_exact_styles_change_colour_not_shape(renderer):
    plain = renderer.render(_scene())
    other = renderer.render(_scene((_actor(style=Style(recolour=1, seed=1)),)))
    assert_array_equal(plain.mask, other.mask)
    changed = np.abs(plain.rgb.astype(int) - other.rgb.astype(int)).max(axis=-1) > 20
    assert changed[plain.mask > 0].mean() > 0.5
    assert not changed[plain.mask == 0].all()


def test_exact_a_toon_has_few_colours_and_a_dark_rim(renderer):
    def drawn(style):
        return renderer.render(_scene((_actor(style=style),)))

    plain, bare = drawn(Style()), drawn(Style("toon", outline=0))
    one, whole = drawn(Style("toon", outline=0, bands=1)), drawn(Style("toon"))
    body = plain.mask > 0
    assert_array_equal(bare.mask, plain.mask)
    colours = [len(np.unique(x.rgb[body] // 4, axis=0)) for x in (plain, bare, one)]
    assert colours[0] > 2 * colours[1]
    assert colours[1] > 1.3 * colours[2]
    rim = (whole.mask > 0) & ~body
    assert_array_equal(whole.mask > 0, rim | body)
    assert 0.05 < rim.sum() / body.sum() < 0.3
    assert whole.rgb[rim].mean() < 0.7 * bare.rgb[rim].mean()


@pytest.mark.parametrize("kind", ["plain", "gradient", "noise", "stripes", "checker", "bokeh"])
def test_unchanged_by_time_flat_backdrops_stay_fixed(kind):
    background = Background(kind, seed=5)
    picture = backdrop(background, 48, 64)
    assert picture.shape == (48, 64, 3)
    assert_array_equal(picture, backdrop(background, 48, 64))
    if kind not in ("plain", "gradient"):
        other = backdrop(replace(background, seed=6), 48, 64).astype(int)
        assert np.abs(other - picture).mean() > 2


def test_exact_image_background_shows_where_nobody_stands(renderer):
    image = np.full((40, 90, 3), (10, 200, 30), np.uint8)
    scene = _scene(background=Background("image", image=image))
    scene = replace(scene, light=replace(scene.light, shadow=0))
    out = renderer.render(scene)
    corner = out.rgb[:, :5, :5].reshape(-1, 3)
    assert_allclose(corner, np.broadcast_to((10, 200, 30), corner.shape), atol=1)


def test_refuses_what_cannot_be_drawn(renderer, monkeypatch):
    with pytest.raises(ConfigError, match="want full, upper or face"):
        _scene(framing="feet")
    with pytest.raises(ConfigError, match=r"want 0\.05 to 2"):
        _scene(size=9)
    with pytest.raises(ShapeError, match="frames, the camera"):
        Scene((_actor(),), frame_camera(CAST, _cut(_scene(), slice(0, 2)).actors))
    with pytest.raises(AssetError, match="sand"):
        renderer.render(_scene(background=Background("terrain", texture="sand")))
    monkeypatch.setenv("DREAMACTOR_EGL_DEVICE", "first")
    with pytest.raises(DreamActorError, match="want a device number"):
        open_context()


@pytest.mark.skipif(not MINI.exists(), reason="the mini pack is not built")
def test_exact_every_look_of_the_mini_pack_fills_its_frame():
    cast = load_cast(MINI)
    renderer = Renderer(cast)
    for look in cast.looks.values():
        if not look.motions:
            continue
        motion = cast.motions[look.motions[0]]
        actor = Actor(look, pose_clip(cast, look, motion, TIMES))
        out = renderer.render(Scene((actor,), frame_camera(cast, actor, azimuth=30)))
        box = np.argwhere(out.mask.any(axis=0))
        assert np.ptp(box, axis=0).max() > 0.6 * 256, look.name
        assert out.rgb[out.mask > 0].mean() > 35, look.name
