"""The pose variant: a skeleton drives in place of the clip, behind empty frames; adapters."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from copycat import NATIVE, Copycat
from filming import film, frames_of
from numpy.testing import assert_array_equal
from test_cli_animate import command, inputs, refused  # noqa: F401
from test_nano import TINY, save, tiny_nano

from dreamactor.backbones.load import load_backbone
from dreamactor.backbones.lora import AdapterInfo, adapter_state, attach, save_adapter
from dreamactor.backbones.nano import PREDICTS
from dreamactor.backbones.weights import save_weights
from dreamactor.conditioning.augment import AugmentConfig, augment, hide_lead
from dreamactor.conditioning.canvas import motion_half
from dreamactor.conditioning.framing import to_picture
from dreamactor.conditioning.motion_words import from_track
from dreamactor.conditioning.skeleton import JOINTS, PoseTrack, draw
from dreamactor.diffusion import driving, skeletons
from dreamactor.diffusion.job import AnimateConfig, prepare
from dreamactor.diffusion.pipeline import animate, generate, preview, resolve
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import write_png
from dreamactor.provenance import Stages, sha256
from dreamactor.video import probe

TESTS = Path(__file__).parent
PLAIN = AugmentConfig(scale_share=0)  # what training draws of a sample whose bones stay


def walk(count, height=64, width=64):
    """A person of all joints in the left half of a picture, who waves the left hand."""
    at = {
        **{"head": (0, -30), "neck": (0, -22), "spine": (0, -10), "pelvis": (0, 0), "tail": (2, 2)},
        **{f"{n}_{s}": (x * (1 - 2 * (s == "r")), y) for s in "lr" for n, x, y in (
            ("shoulder", 6, -20), ("elbow", 8, -12), ("wrist", 9, -4),
            ("hip", 4, 1), ("knee", 4, 12), ("ankle", 5, 24))},
    }  # fmt: skip
    body = np.array([at[name] for name in JOINTS], np.float32)
    positions = np.repeat(body[None, None], count, 0)
    positions[:, 0, JOINTS.index("wrist_l"), 1] -= 24 * (np.arange(count) % 8 > 3)
    positions = (positions * 0.5 + [20, 30]) * [width / 64, height / 64]
    confidence = np.ones((count, 1, len(JOINTS)), np.float32)
    confidence[::5, 0, JOINTS.index("tail")] = 0
    return PoseTrack(JOINTS, positions.astype(np.float32), confidence, height, width, 12.0)


class Known:
    """An estimator that finds `walk` whatever it sees, and remembers what that was."""

    name = "keypoints"
    weights = {"k.safetensors": "1" * 64}  # noqa: RUF012

    def __init__(self, find=walk):
        self.find, self.looks = find, []

    def __call__(self, frames, fps):
        seen = list(frames)
        self.looks.append(seen)
        return self.find(len(seen), *seen[0].shape[:2])


@pytest.fixture
def known(monkeypatch):
    estimator = Known()
    monkeypatch.setattr(driving, "load_estimator", lambda name, device: estimator)
    return estimator


@pytest.fixture
def run(tmp_path):
    """Animate a picture by a clip."""
    write_png(
        tmp_path / "r.png", np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    )

    def run(clip=None, backbone=None, out="out.mp4", **settings):
        film(tmp_path / "d.mp4", **({"count": 30} | (clip or {})))
        settings = {"variant": "pose", "prompt": "", "overwrite": True} | settings
        if backbone is None:
            backbone = Copycat(variant=settings["variant"])
        return animate(
            reference=tmp_path / "r.png", driving=tmp_path / "d.mp4", out=tmp_path / out,
            backbone=backbone, **settings,
        )  # fmt: skip

    return run


def task_of(tmp_path, backbone, count, fps=12, **size):
    """A task of the pose variant, as `run` puts it together."""
    film(tmp_path / "d.mp4", count, fps, **size)
    write_png(tmp_path / "r.png", np.zeros((64, 64, 3), np.uint8))
    config = AnimateConfig(
        tmp_path / "r.png", tmp_path / "d.mp4", tmp_path / "o.mp4", variant="pose", prompt=""
    )
    job = prepare(config)
    track, _ = driving.find_joints(job, backbone.native)
    return resolve(job, backbone, "", skeletons.skeleton(track, backbone))


# ---- what the model is shown --------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (32, 32)])
def test_the_motion_half_is_what_training_draws(tmp_path, known, size):
    """same: an empty second, then what a training sample with unscaled bones shows, pixel by
    pixel, whatever the clip's size."""
    backbone = Copycat(variant="pose")
    task = task_of(tmp_path, backbone, 40, size=size)
    list(generate(task, backbone, Stages(), lambda: None))
    shown = {}
    for segment, (canvas, _) in zip(task.segments, backbone.canvases, strict=True):
        halves = motion_half(canvas.pixels)[0].unbind(1)
        shown.update(zip(segment.driving(task.native_frames), halves, strict=True))
    frames = np.stack([to_picture(shown[k]) for k in range(task.native_frames)])
    sample = augment(walk(40), PLAIN, 0, 0)
    assert_array_equal(frames[12:], draw(sample))
    assert_array_equal(frames[:12], draw(hide_lead(sample, 1.0))[:12])
    assert (frames[12:].max(axis=(1, 2, 3)) > 200).all()


@pytest.mark.parametrize("lead", [1, 4, 7])
def test_the_canvas_begins_as_in_training(tmp_path, known, lead):
    """same: the motion half of the first segment is a training sample whose first frames are
    hidden, frame for frame: as many are empty, and the next one shows the clip's first pose."""
    backbone = Copycat(variant="pose", lead=lead)
    task = task_of(tmp_path, backbone, 40, size=(64, 64))
    assert task.lead == lead - 1
    next(generate(task, backbone, Stages(), lambda: None))
    canvas = backbone.canvases[0][0]
    shown = np.stack([to_picture(x) for x in motion_half(canvas.pixels)[0].unbind(1)])
    body = augment(walk(40), PLAIN, 0, 0)
    before = np.repeat(body.positions[:1], lead, 0), np.ones((lead, *body.confidence.shape[1:]))
    sample = replace(
        body,
        positions=np.concatenate([before[0], body.positions])[:17],
        confidence=np.concatenate([before[1], body.confidence]).astype(np.float32)[:17],
    )
    first = 1 if lead == 1 else 0  # of one hidden frame, the reference's, the canvas makes the next
    assert_array_equal(shown[first:], draw(hide_lead(sample, lead / 12))[first:])


def test_no_lead_at_all(tmp_path, known):
    task = task_of(tmp_path, Copycat(variant="pose", lead=0), 40)
    assert (task.lead, task.native_frames) == (0, 40)


def test_the_estimator_sees_the_clip_at_the_backbones_rate(tmp_path, known):
    """exact: the frames that would drive the rgb variant, in the clip's own size."""
    ramp = lambda i, h, w: np.full((h, w, 3), 20 + 4 * i, np.uint8)  # noqa: E731
    task_of(tmp_path, Copycat(variant="pose"), 50, 25, size=(48, 80), draw=ramp)
    (seen,) = known.looks
    assert {frame.shape for frame in seen} == {(48, 80, 3)}
    nearest = [min(49, round(25 * k / 12 - 0.01)) for k in range(25)]
    assert [round((float(f.mean()) - 20) / 4) for f in seen] == nearest


def test_a_clip_is_read_anew_at_every_look(tmp_path):
    film(tmp_path / "d.mp4", 20, 10)
    clip = driving.Footage(tmp_path / "d.mp4", 5, 9)
    first = list(clip)
    assert len(first) == 9
    assert_array_equal(first, list(clip))


# ---- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "settings"),
    [
        ({"count": 30, "fps": 25, "audio": "aac"}, {}),
        ({"count": 2, "fps": 24}, {}),
        ({"count": 9, "fps": 5, "audio": "aac"}, {"fit": "crop"}),
        ({"count": 60, "fps": 60}, {"fps": 10, "interpolate": "nearest"}),
    ],
)
def test_the_lead_is_cut_and_all_else_is_as_with_rgb(run, tmp_path, known, clip, settings):
    results = {}
    for variant in ("rgb", "pose"):
        path = run(clip, variant=variant, out=f"{variant}.mp4", **settings).out
        made = probe(path)
        results[variant] = (made.frames, made.fps, made.duration, made.size, made.has_audio)
    assert results["pose"] == results["rgb"]
    facts = [json.loads((tmp_path / f"{v}.json").read_text()) for v in ("rgb", "pose")]
    assert [record["lead_frames"] for record in facts] == [0, 12]
    assert facts[1]["generated_frames"] == facts[0]["generated_frames"] + 12
    assert [record["settings"]["pose"] for record in facts] == [None, "keypoints"]
    found = {"name": "keypoints", "weights": {"k.safetensors": "1" * 64}}
    assert [record["estimator"] for record in facts] == [None, found]


def test_what_comes_out_follows_the_skeleton_from_its_first_frame_on(run, known):
    """same: with a model that copies its motion half, frame k is skeleton k, but for the codec."""
    result = run({"count": 40, "fps": 12, "size": (64, 64)}, fit="crop")
    wanted = draw(augment(walk(40), PLAIN, 0, 0)).astype(int)
    made = np.stack(frames_of(result.out)).astype(int)
    assert made.shape == wanted.shape
    off = {k: np.abs(made[4 + k : 36 + k] - wanted[4:36]).mean() for k in range(-4, 5)}
    assert off[0] < 3
    assert sorted(off, key=off.get)[0] == 0, "a frame earlier or later fits better"


def test_a_plan_knows_of_the_lead_and_needs_no_estimator(tmp_path):
    film(tmp_path / "d.mp4", 30, 12)
    write_png(tmp_path / "r.png", np.zeros((64, 64, 3), np.uint8))
    config = AnimateConfig(
        tmp_path / "r.png", tmp_path / "d.mp4", tmp_path / "o.mp4", variant="pose", pose="rtmlib"
    )
    plan = preview(prepare(config), Copycat(variant="pose"))
    assert (plan["generated_frames"], plan["lead_frames"], plan["output"]["frames"]) == (42, 12, 30)
    assert [segment["new"] for segment in plan["segments"]] == [16, 12, 12, 2]
    assert plan["settings"]["pose"] == "rtmlib"


# ---- text ---------------------------------------------------------------------------------------


def test_motion_is_told_from_the_track_where_there_is_one(run, known):
    """exact: of the first ten seconds; asked for nothing else, an estimator never runs."""
    clip = {"count": 130, "fps": 12}
    text = run(clip, prompt=None).facts["text"]
    assert text["motion"] == from_track(walk(120, 48, 64)) != from_track(walk(130, 48, 64))
    assert text["motion"].startswith("stands and waves the left arm fast")
    assert run(clip).facts["text"]["motion"] == ""
    assert len(known.looks) == 2
    assert run(clip, variant="rgb", prompt=None).facts["text"]["motion"] != text["motion"]
    assert len(known.looks) == 2


# ---- adapters -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of tiny weights, sha256 of its transformer, and a function that makes adapters."""
    folder = tmp_path_factory.mktemp("weights")
    digest = save(tiny_nano(), folder)["transformer.safetensors"]

    def adapter(variant="pose", **facts):
        torch.manual_seed(1)
        info = AdapterInfo(variant, "nano", digest, rank=2, lead=4 if variant == "pose" else None)
        transformer = TINY.build()
        for parameter in attach(transformer, info):
            torch.nn.init.normal_(parameter, std=0.3)
        path = folder / f"{variant}{len(list(folder.iterdir()))}.safetensors"
        save_adapter(path, adapter_state(transformer), replace(info, **facts))
        return path

    return folder, digest, adapter


def test_an_adapter_is_merged_and_recorded(run, command, known, weights, tmp_path):  # noqa: F811
    folder, digest, adapter = weights
    path = adapter()
    words = ["--weights", folder, "--variant", "pose", "--adapter", path, "--prompt", ""]
    assert command(*words)[0] == 0
    record = json.loads((tmp_path / "out.json").read_text())
    facts = {"variant": "pose", "backbone": "nano", "weights": digest, "rank": 2, "targets": "ff"}
    facts["lead"] = 4
    told = record["backbone"]["adapter"]
    assert facts.items() <= told.items()
    assert told["sha256"] == sha256(path)
    assert record["lead_frames"] == 3
    assert record["settings"]["adapter"] == str(path)
    assert record["settings"]["variant"] == "pose"
    # same: by hand, and the same again; without it the clip is another
    model = load_backbone("nano", folder, adapter=path)
    plain = {"watermark": False, "manifest": False}
    hand = run(backbone=model, out="hand.mp4", **plain).facts
    again = load_backbone("nano", folder, adapter=path)
    again = run(backbone=again, out="again.mp4", **plain).facts
    assert hand["backbone"] == again["backbone"] == record["backbone"]
    assert hand["output"]["sha256"] == again["output"]["sha256"]
    bare = load_backbone("nano", folder)
    bare.variant, bare.lead = "pose", 4
    bare = run(backbone=bare, out="bare.mp4", **plain).facts
    assert bare["output"]["sha256"] != hand["output"]["sha256"]


def test_an_adapter_of_rgb_goes_with_rgb(command, weights, tmp_path):  # noqa: F811
    folder, _, adapter = weights
    assert command("--weights", folder, "--adapter", adapter("rgb"), "--prompt", "")[0] == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["backbone"]["adapter"]["variant"] == "rgb"


def test_a_video_model_animates_with_an_adapter_only(tmp_path):
    """exact: a base that never saw a canvas is what adapters are trained on."""
    digest = save(tiny_nano(), tmp_path, task="video")["transformer.safetensors"]
    transformer, info = TINY.build(), AdapterInfo("rgb", "nano", digest, rank=2)
    attach(transformer, info)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter_state(transformer), info)
    assert load_backbone("nano", tmp_path, adapter=path).variant == "rgb"
    with pytest.raises(Exception, match="task 'video', want 'animate'"):
        load_backbone("nano", tmp_path)


def test_weights_that_say_pose_need_no_adapter(run, known, tmp_path):
    """exact: the header of the transformer decides, and a word that is none is refused."""
    folder = tmp_path / "weights"
    folder.mkdir()
    nano = tiny_nano()
    files = save(nano, folder)
    for variant, lead in (("pose", 4), ("pose", None), ("depth", None)):
        path = folder / "transformer.safetensors"
        header = {"model": "nano", "config": vars(TINY), "predicts": PREDICTS}
        header |= {"variant": variant, "lead": lead}
        files[path.name] = save_weights(path, nano.transformer.state_dict(), header)
        manifest = {"files": files, "native": vars(NATIVE)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if lead:
            result = run(backbone=load_backbone("nano", folder))
            assert (result.frames, result.facts["lead_frames"]) == (30, 3)
        elif variant == "pose":
            with pytest.raises(Exception, match="lead=None: want the number of frames"):
                load_backbone("nano", folder)
    with pytest.raises(Exception, match="driven by 'depth', want rgb or pose"):
        load_backbone("nano", folder)


def broken(path, change):
    data = path.read_bytes()
    path.write_bytes(change(data))
    return path


@pytest.mark.parametrize(
    ("variant", "make", "message"),
    [
        ("pose", None, "variant=pose: the weights of nano are trained for rgb; want an --adapter "
         "trained for pose, or --variant rgb"),
        ("rgb", lambda new: new("pose"), "variant=rgb: the adapter is trained for pose; want an "
         "--adapter trained for rgb, or --variant pose"),
        ("pose", lambda new: new("rgb"), "variant=pose: the adapter is trained for rgb"),
        ("pose", lambda new: new(backbone="wan"), "an adapter of wan"),
        ("pose", lambda new: new(weights="0" * 64), "want the backbone it was trained on"),
        ("pose", lambda new: new(canvas=9), "canvas version 9"),
        ("pose", lambda new: new(rank=3), "its layers do not fit nano"),
        ("pose", lambda new: new(targets="attention"), "its layers are not those of nano"),
        ("pose", lambda new: broken(new(), lambda b: b[:-9]), "not a readable safetensors file"),
        ("pose", lambda new: broken(new(), lambda b: b"x" * 99), "not a readable safetensors"),
        ("pose", lambda new: broken(new(), lambda b: b.replace(b"rank", b"rang")),
         "not an adapter header this program reads"),
        ("pose", lambda new: broken(new(), lambda b: b.replace(b'lead\\": 4', b'lead\\": -')),
         "its header is not JSON"),
        ("pose", lambda new: broken(new(), lambda b: b.replace(b'\\"lead\\": 4, ', b" " * 13)),
         "not an adapter header this program reads (lead=None: want the number of frames"),
        ("pose", lambda new: new().with_name("vae.safetensors"), "'nano-vae', want 'adapter'"),
    ],
)  # fmt: skip
def test_refuses_in_one_line_and_leaves_nothing(
    command, known, weights, tmp_path, variant, make, message  # noqa: F811
):  # fmt: skip
    folder, _, adapter = weights
    words = ["--weights", folder, "--variant", variant]
    words += [] if make is None else ["--adapter", make(adapter)]
    assert refused(command(*words), message)
    assert refused(command(*words, "--dry-run"), message)
    assert not known.looks
    assert not list(tmp_path.iterdir())


def test_refuses_a_clip_in_which_nothing_is_found(run, known, tmp_path):
    known.find = lambda *size: replace(walk(*size), confidence=walk(*size).confidence * 0.29)
    with pytest.raises(MediaError, match=r"d\.mp4: keypoints finds no joint in it; want a subject"):
        run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.mp4", "r.png"]


def test_refuses_an_adapter_beside_a_loaded_backbone(run, weights):
    with pytest.raises(ConfigError, match="want the adapter given to load_backbone"):
        run(variant="rgb", adapter=weights[2]("rgb"))


# ---- memory -------------------------------------------------------------------------------------

MEMORY = """
import sys
from collections import deque
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from copycat import Copycat
from test_keypoints import TINY
from dreamactor import animate
from dreamactor.backbones.keypoints import KeypointNet, Keypoints
from dreamactor.diffusion import driving, skeletons
from dreamactor.provenance import peak_memory

torch.manual_seed(0)
network = KeypointNet(TINY)
network.bias.data += 3  # everything is found
driving.load_estimator = lambda name, device: Keypoints(network)
folder = Path(sys.argv[2])
for name in ("short", "short", "long"):  # the signer's library stays, once it was loaded
    animate(reference=folder / "r.png", driving=folder / f"{name}.mp4", out=folder / f"{name}o.mp4",
            backbone=Copycat(variant="pose", canvases=deque(maxlen=0), noises=deque(maxlen=0)),
            variant="pose", steps=1, overwrite=True)
    print(peak_memory())
"""


def test_memory_does_not_grow_with_length(tmp_path):
    write_png(tmp_path / "r.png", np.zeros((64, 64, 3), np.uint8))
    film(tmp_path / "short.mp4", 120, 12, size=(128, 160))
    film(tmp_path / "long.mp4", 1200, 12, size=(128, 160))
    argv = [sys.executable, "-c", MEMORY, str(TESTS), str(tmp_path)]
    # glibc else keeps what was freed between what was not, up to 60 MiB here, however long the clip
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    _, short, long = map(float, done.stdout.split())
    assert long - short < 40  # MiB; 1,080 frames of the clip would be 63, as the network sees 202
