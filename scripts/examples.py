"""Make the example media that ship with the package, from the mini cast pack alone.

    python scripts/examples.py [OUT_FOLDER]

Each example is a reference.png and a driving.mp4; examples.json says what they show. Characters
and motions are all of the test split: no model of ours has seen them. Drawn as pairs are (see
world/pairs.py): driver and reference share the view to within 25 degrees, the reference has the
size and place that its figure has in the motion, everything else differs.

The same machine gives the same bytes; another graphics driver may round some pixels otherwise.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

import dreamactor
from dreamactor.image import Rgb, write_png
from dreamactor.runs import numpy_generator
from dreamactor.video import write_clip
from dreamactor.world.body import pose_clip
from dreamactor.world.camera import frame_camera
from dreamactor.world.cast import LICENCE, Array, Cast, Look, Motion, Skeleton, load_cast
from dreamactor.world.pose import (
    Track,
    joint_positions,
    place,
    quat_apply,
    quat_conj,
    sample_motion,
    slerp,
)
from dreamactor.world.render import Renderer
from dreamactor.world.scene import Actor, Background, Camera, Light, Scene, Style

DATA = Path(dreamactor.__file__).parent / "data"
SAMPLE_RATE = 48_000
CROSSFADE = 0.4  # seconds from one motion to the next
CRF = 20
TEXTURED = Style()
Sound = NDArray[np.float64]

WHITE = ((0.72, 0.76, 0.80), (0.93, 0.95, 0.96))
SAND = ((0.80, 0.66, 0.50), (0.96, 0.88, 0.74))
DUSK = ((0.35, 0.40, 0.55), (0.86, 0.72, 0.66))
MINT = ((0.42, 0.66, 0.60), (0.82, 0.92, 0.86))
SKY = ((0.75, 0.82, 0.90), (0.45, 0.62, 0.85))


@dataclass(frozen=True)
class Figure:
    """One identity with what surrounds it."""

    look: str
    background: Background
    style: Style = TEXTURED
    drop: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Example:
    """One reference and one driving clip."""

    name: str
    title: str
    shows: str
    reference: Figure
    driver: Figure
    motions: tuple[tuple[str, float], ...]
    """Motions in a row, each with its seconds."""
    start: float
    """Seconds into the first motion."""
    pose: tuple[str, float]
    """Motion and second of the reference's pose."""
    turn: float
    """Degrees that the reference is turned against the driver; at most 25."""
    azimuth: float
    size: tuple[int, int]
    """(height, width) of the reference."""
    driving_size: int
    """Pixels of a side."""
    fps: int
    fanfare: float | None = None
    """Second of a fanfare; None leaves the clip silent."""

    @property
    def seconds(self) -> float:
        """Length of the driving clip."""
        return sum(seconds for _, seconds in self.motions)


EXAMPLES = (
    Example(
        name="triumph",
        title="Person by person",
        shows="A Spartan raises his fist in triumph, as an Egyptian woman did",
        reference=Figure(
            "units/spartans/infantry_spearman_c#0",
            Background("gradient", SAND),
            drop=frozenset({"shield", "weapon"}),
        ),
        driver=Figure("units/ptolemies/female_citizen#0", Background("gradient", WHITE)),
        motions=(("biped/infantry/promotion", 2.0),),
        start=0.0,
        pose=("biped/infantry/swordsman/walk_ready_2h", 0.45),
        turn=-10.0,
        azimuth=-40.0,
        size=(512, 512),
        driving_size=320,
        fps=24,
    ),
    Example(
        name="duel",
        title="Cartoon by person",
        shows="A cartoon swordsman lunges, as an archer did with a knife",
        reference=Figure(
            "units/han/cavalry_swordsman_e_r#0",
            Background("gradient", MINT),
            Style("toon", recolour=0.8, seed=4),
            frozenset({"shield"}),
        ),
        driver=Figure(
            "units/kushites/infantry_archer_a#0",
            Background("terrain", SKY, texture="terrain-desert_city_tile", tile=6.0),
            drop=frozenset({"weapon"}),
        ),
        motions=(("biped/infantry/knife/attack_melee_knife_a", 1.3),),
        start=0.0,
        pose=("biped/infantry/slinger/idle_ready", 0.5),
        turn=10.0,
        azimuth=-25.0,
        size=(512, 512),
        driving_size=320,
        fps=30,
    ),
    Example(
        name="gallop",
        title="Animal by animal",
        shows="A mountain goat bounds along, as a camel did",
        reference=Figure(
            "fauna/goat#0",
            Background("terrain", SKY, texture="terrain-temperate-grass_01", tile=7.0),
        ),
        driver=Figure("fauna/camel#0", Background("gradient", SAND)),
        motions=(("quadraped/deer_run_01", 1.25),),
        start=0.6,
        pose=("quadraped/elephant_asian_walk", 0.3),
        turn=8.0,
        azimuth=-70.0,
        size=(512, 512),
        driving_size=320,
        fps=24,
    ),
    Example(
        name="parade",
        title="A long clip with sound",
        shows="A priest walks, cheers and runs as a soldier did, with his steps and fanfare",
        reference=Figure(
            "units/ptolemies/healer#0", Background("gradient", DUSK), drop=frozenset({"other"})
        ),
        driver=Figure(
            "units/macedonians/infantry_pikeman_e#0",
            Background("terrain", SKY, texture="terrain-aegean_anatolia-dirt_01", tile=7.0),
            drop=frozenset({"shield", "weapon"}),
        ),
        motions=(
            ("biped/gatherer/walk_axe", 1.0),
            ("biped/infantry/promotion", 1.3),
            ("biped/infantry/hoplite/run_relax", 1.0),
        ),
        start=0.0,
        pose=("biped/infantry/crossbowman/idle_relax_01", 0.0),
        turn=12.0,
        azimuth=-35.0,
        size=(512, 384),
        driving_size=320,
        fps=30,
        fanfare=1.4,
    ),
)


# ---- motion ---------------------------------------------------------------------------------


def medley(cast: Cast, example: Example) -> Motion:
    """The example's motions in a row, each faded into the next."""
    names = [name for name, _ in example.motions]
    first = cast.motions[names[0]]
    skeleton = cast.skeletons[first.skeleton]
    count = round((example.seconds + 0.5) * first.fps)
    times = np.arange(count) / first.fps
    track = sample_motion(first, times + example.start)
    end = 0.0
    for (_, seconds), name in zip(example.motions, names[1:], strict=False):
        end += seconds
        other = sample_motion(cast.motions[name], times - end + CROSSFADE / 2)
        share = np.clip((times - end) / CROSSFADE + 0.5, 0, 1)[:, None, None]
        track = crossfade(skeleton, track, other, share * share * (3 - 2 * share))
    return replace(
        first,
        name="+".join(names),
        rotations=track.rotations,
        positions=track.positions,
        loops=False,
    )


def crossfade(skeleton: Skeleton, a: Track, b: Track, share: Array) -> Track:
    """Blend two tracks; joints stay connected. `share` (T, 1, 1), 0 gives a."""
    share = share.astype(np.float32)
    rotations = slerp(a.rotations, b.rotations, share)
    positions = (1 - share) * a.positions + share * b.positions
    for bone, parent in enumerate(skeleton.parents):
        if parent < 0:
            continue
        ours, theirs = (
            quat_apply(
                quat_conj(t.rotations[:, parent]), t.positions[:, bone] - t.positions[:, parent]
            )
            for t in (a, b)
        )
        offset = ours + share[:, 0] * (theirs - ours)
        positions[:, bone] = positions[:, parent] + quat_apply(rotations[:, parent], offset)
    return Track(rotations, positions.astype(np.float32))


def landings(skeleton: Skeleton, pose: Array, times: Array) -> list[tuple[float, int]]:
    """(second, foot) of every moment at which a foot comes down; feet are numbered."""
    joints = joint_positions(skeleton, pose)
    quadruped = skeleton.body_plan == "quadruped"
    feet = ["ankle_l", "ankle_r", *(["wrist_l", "wrist_r"] if quadruped else [])]
    leg = float(np.median(joints["hip_l"][:, 1] - joints["ankle_l"][:, 1]))
    found = []
    for number, foot in enumerate(feet):
        height = (joints[foot][:, 1] - joints[foot][:, 1].min()) / leg
        up = False
        for time, rise in zip(times, height, strict=True):
            if up and rise < 0.06:
                found.append((float(time), number))
            up = rise > 0.14 if not up else rise >= 0.06
    return sorted(found)


# ---- pictures -------------------------------------------------------------------------------


def draw(cast: Cast, renderer: Renderer, example: Example) -> tuple[Rgb, Rgb, Motion]:
    """The reference (H, W, 3), the driving frames (T, h, w, 3) and their motion."""
    motion = medley(cast, example)
    times = np.arange(round(example.seconds * example.fps), dtype=np.float32) / example.fps
    driver, target = (cast.looks[f.look] for f in (example.driver, example.reference))
    side = example.driving_size
    moving = actor(example.driver, driver, pose_clip(cast, driver, motion, times, end="clamp"))
    camera = frame_camera(cast, moving, azimuth=example.azimuth, elevation=5, size=0.92)
    scene = Scene((moving,), camera, Light(), example.driver.background, side, side)
    frames = renderer.render(scene).rgb
    pose = pose_clip(cast, target, motion, times, end="clamp")
    still = reference_pose(cast, example, target, pose[0])
    shown = actor(example.reference, target, np.concatenate([still, pose]))
    height, width = example.size
    camera = frame_camera(
        cast, shown, azimuth=example.azimuth, elevation=5, size=0.92, aspect=width / height
    )
    camera = Camera(camera.eye[:1], camera.target[:1], camera.fov[:1], camera.shift[:1])
    shown = replace(shown, pose=still)
    scene = Scene((shown,), camera, Light(), example.reference.background, height, width)
    return renderer.render(scene).rgb[0], frames, motion


def actor(figure: Figure, look: Look, pose: Array) -> Actor:
    """A figure in a pose (T, J, 4, 4)."""
    return Actor(look, pose, figure.style, figure.drop)


def reference_pose(cast: Cast, example: Example, look: Look, first: Array) -> Array:
    """(1, J, 4, 4) the reference's pose, where the motion's first frame (J, 4, 4) stands."""
    name, second = example.pose
    times = np.float32(second) + np.arange(5, dtype=np.float32) / 12
    pose = pose_clip(cast, look, cast.motions[name], times)[:1]
    turned = place(pose, (0, 0, 0), np.radians(example.turn))
    root = cast.skeletons[look.skeleton].joints.get("pelvis", 0)
    turned[..., [0, 2], 3] += (first[root, :3, 3] - turned[0, root, :3, 3])[[0, 2]]
    return turned


# ---- sound ----------------------------------------------------------------------------------


def soundtrack(cast: Cast, example: Example, motion: Motion) -> Sound:
    """(samples, 2) in [-1, 1]: a step at every landing of a foot, and the fanfare."""
    look = cast.looks[example.driver.look]
    times = np.arange(round(example.seconds * 100), dtype=np.float32) / 100
    pose = pose_clip(cast, look, motion, times, end="clamp")
    out = np.zeros((round(example.seconds * SAMPLE_RATE), 2))
    for index, (time, foot) in enumerate(landings(cast.skeletons[look.skeleton], pose, times)):
        right = 0.35 + 0.3 * (foot % 2)
        _mix(out, time, step(index), right)
    if example.fanfare is not None:
        for note, hertz in enumerate((392.0, 523.25, 659.25, 784.0)):
            _mix(out, example.fanfare + 0.11 * note, horn(hertz, 0.9 - 0.1 * note), 0.5)
    return out * 0.8 / max(1e-6, float(np.abs(out).max()))


def step(index: int) -> Sound:
    """A foot on gravel: a thump and a crunch."""
    noise = numpy_generator(0, "examples/step", index).standard_normal(SAMPLE_RATE // 5)
    time = np.arange(len(noise)) / SAMPLE_RATE
    thump = np.sin(2 * np.pi * (70 * time + 2 * np.exp(-40 * time))) * np.exp(-28 * time)
    crunch = np.convolve(noise, np.hanning(9) / 4.5, "same") * np.exp(-45 * time)
    return np.asarray((0.5 * thump + 0.35 * crunch) * np.minimum(1, time * 500))


def horn(hertz: float, seconds: float) -> Sound:
    """A brass-like tone."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    swell = np.minimum(1, time * 30) * np.minimum(1, (seconds - time) * 4)
    tones = [np.sin(2 * np.pi * hertz * k * time) / k**1.4 for k in range(1, 7)]
    return np.asarray(0.12 * swell * np.sum(tones, axis=0))


def _mix(out: Sound, time: float, sound: Sound, right: float) -> None:
    """Add a mono sound at a time (seconds); `right` in [0, 1] is its share on the right."""
    begin = round(time * SAMPLE_RATE)
    room = out[begin : begin + len(sound)]
    room += sound[: len(room), None] * np.sqrt([1 - right, right])


def write_sound(path: Path, sound: Sound) -> None:
    """Write (samples, 2) in [-1, 1] as PCM, beside black pictures: a clip for `audio_from`."""
    with av.open(str(path), "w", format="mov") as output:
        pictures = output.add_stream("mjpeg", rate=1)
        pictures.height, pictures.width, pictures.pix_fmt = 16, 16, "yuvj420p"
        track = output.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="stereo")
        for _ in range(2):
            black = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
            output.mux(pictures.encode(black))
        levels = np.rint(sound * 32767).astype(np.int16).reshape(1, -1)
        samples = av.AudioFrame.from_ndarray(levels, "s16", "stereo")
        samples.sample_rate = SAMPLE_RATE
        output.mux([*pictures.encode(None), *track.encode(samples), *track.encode(None)])


# ---- files ----------------------------------------------------------------------------------


def main(say: Callable[[str], None] = print) -> None:
    """Make all examples."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "examples"
    cast = load_cast(DATA / "mini.castpack")
    renderer = Renderer(cast)
    for example in EXAMPLES:
        folder = out / example.name
        folder.mkdir(parents=True, exist_ok=True)
        reference, frames, motion = draw(cast, renderer, example)
        write_png(folder / "reference.png", reference)
        with tempfile.TemporaryDirectory() as scratch:
            sound = None
            if example.fanfare is not None:
                sound = Path(scratch) / "sound.mov"
                write_sound(sound, soundtrack(cast, example, motion))
            clip = folder / "driving.mp4"
            write_clip(clip, frames, example.fps, audio_from=sound, overwrite=True, crf=CRF)
        size = sum(path.stat().st_size for path in folder.iterdir())
        say(f"{folder}: {len(frames)} frames, {size / 1024:.0f} KiB")
    text = json.dumps(index(cast), indent=1) + "\n"
    (out / "examples.json").write_text(text)


def index(cast: Cast) -> dict[str, object]:
    """What examples.json says."""
    entries = []
    for example in EXAMPLES:
        looks = {
            role: {"name": look.name, "caption": look.caption, "split": look.split}
            for role, figure in (("reference", example.reference), ("driving", example.driver))
            for look in [cast.looks[figure.look]]
        }
        names = dict.fromkeys([*(name for name, _ in example.motions), example.pose[0]])
        entries.append(
            {
                "name": example.name,
                "title": example.title,
                "shows": example.shows,
                "reference": f"{example.name}/reference.png",
                "driving": f"{example.name}/driving.mp4",
                "seconds": example.seconds,
                "fps": example.fps,
                "sound": example.fanfare is not None,
                "looks": looks,
                "motions": {name: cast.motions[name].split for name in names},
            }
        )
    return {"licence": LICENCE, "maker": "python scripts/examples.py", "examples": entries}


if __name__ == "__main__":
    main()
