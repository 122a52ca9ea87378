"""animate() with a backbone that copies the driving clip: everything around the model."""

import json
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from copycat import NATIVE, Copycat
from filming import film, frames_of
from test_nano import tiny_nano

import dreamactor
from dreamactor.conditioning.canvas import motion_half, reference_half
from dreamactor.conditioning.framing import to_picture
from dreamactor.conditioning.placement import Placement, place_frames
from dreamactor.diffusion import pipeline
from dreamactor.diffusion.job import AnimateConfig, prepare
from dreamactor.diffusion.pipeline import Settings, animate, generate, resolve
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import write_png
from dreamactor.provenance import Stages, both_or_neither, peak_memory, sha256
from dreamactor.video import probe


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "reference.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8))
    return path


@pytest.fixture
def run(tmp_path, reference):
    """Animate the reference by a clip filmed with `driving`."""

    def run(driving=None, backbone=None, out="out.mp4", **settings):
        clip = film(tmp_path / "driving.mp4", **({"count": 30} | (driving or {})))
        return animate(
            reference=reference, driving=clip, out=tmp_path / out,
            backbone=backbone or Copycat(), **settings,
        )  # fmt: skip

    return run


def numbered(i, height, width):
    """Frame i in one grey."""
    return np.full((height, width, 3), 20 + 5 * i, np.uint8)


def numbers(frames):
    return [round((float(frame.mean()) - 20) / 5) for frame in frames]


def task_of(tmp_path, reference, backbone, **settings):
    config = AnimateConfig(reference, tmp_path / "driving.mp4", tmp_path / "out.mp4", **settings)
    return resolve(prepare(config), backbone)


# ---- what the model is shown ------------------------------------------------------------------


def test_every_frame_follows_its_driving_frame(tmp_path, reference):
    film(tmp_path / "driving.mp4", 43, 12, draw=numbered)
    backbone = Copycat()
    task = task_of(tmp_path, reference, backbone)
    assert numbers(generate(task, backbone, Stages(), lambda: None)) == list(range(43))


def test_segments_are_shown_the_reference_and_the_last_generated_frames(tmp_path, reference):
    film(tmp_path / "driving.mp4", 30, 12, draw=numbered)
    backbone = Copycat()
    task = task_of(tmp_path, reference, backbone)
    made = list(generate(task, backbone, Stages(), lambda: None))
    assert [canvas.shown for canvas, _ in backbone.canvases] == [1, 5, 5]
    beside = []
    for segment, (canvas, _) in zip(task.segments, backbone.canvases, strict=True):
        left, right = reference_half(canvas.pixels)[0], motion_half(canvas.pixels)[0]
        assert np.array_equal(to_picture(left[:, 0]), task.reference)
        for k in range(segment.shown):
            assert np.array_equal(to_picture(left[:, 1 + k]), made[segment.start + k])
        assert not left[:, 1 + segment.shown :].any()
        beside.append(numbers(map(to_picture, right.unbind(1))))
    assert beside == [
        [0, *range(16)],
        list(range(11, 28)),
        [23, 24, 25, 26, 27, 28, 29, 29, 29],
    ]


@pytest.mark.parametrize(
    ("frames", "guard", "used", "anchors"),
    [
        (124, "auto", "none", []),
        (125, "auto", "anchor", [4, 8]),
        (125, "none", "none", []),
        (125, "statistics", "statistics", []),
        (125, "anchor", "anchor", [4, 8]),
    ],
)
def test_long_clips_are_guarded_unless_told_otherwise(
    tmp_path, reference, frames, guard, used, anchors
):
    """exact: segments that see the reference alone; the plan and the record say what was done."""
    film(tmp_path / "driving.mp4", frames, 12)
    task, backbone = task_of(tmp_path, reference, Copycat(), guard=guard), Copycat()
    assert len(list(generate(task, backbone, Stages(), lambda: None))) == frames
    shown = [canvas.shown for canvas, _ in backbone.canvases]
    assert [k for k, count in enumerate(shown) if k and count == 1] == anchors
    assert task.plain()["guard"] == used


def test_the_first_segment_places_the_whole_clip(run, tmp_path, reference):
    """exact: asked once; every segment is shown the placed clip, and the record says where."""
    film(tmp_path / "driving.mp4", 30, 12)
    placement = Placement(torch.tensor([0.5]), torch.tensor([[0.25, 0.0]]))
    still, placed = Copycat(), Copycat(placement=placement)
    for backbone in (still, placed):
        list(generate(task_of(tmp_path, reference, backbone), backbone, Stages(), lambda: None))
    for (a, _), (b, _) in zip(still.canvases, placed.canvases, strict=True):
        wanted = place_frames(motion_half(a.pixels), placement)
        assert torch.equal(motion_half(b.pixels), wanted)
        assert torch.equal(reference_half(b.pixels)[:, :, 0], reference_half(a.pixels)[:, :, 0])
    assert placed.asked == 1
    facts = run(backbone=placed).facts
    assert facts["placement"] == {"scale": 0.5, "shift": [0.25, 0.0]}
    assert run(backbone=still, out="still.mp4").facts["placement"] is None


def test_noise_is_keyed_by_seed_and_segment(tmp_path, reference):
    film(tmp_path / "driving.mp4", 30, 12, draw=numbered)

    def noises(seed, frames=17):
        backbone = Copycat(replace(NATIVE, frames=frames))
        task = task_of(tmp_path, reference, backbone, seed=seed)
        list(generate(task, backbone, Stages(), lambda: None))
        return [reference_half(x) for x in backbone.noises]

    first, second, _ = noises(0)
    assert torch.equal(first, noises(0)[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, noises(1)[0])
    assert first.mean().abs() < 0.01
    assert abs(first.std() - 1) < 0.01
    assert len(noises(0, frames=13)) == 4


def test_prompt_and_guidance_reach_the_model(run):
    backbone = Copycat()
    run(backbone=backbone, prompt="a fox", steps=3)
    assert (backbone.canvases[0][1] == 5).all()
    assert backbone.passes == 3 * len(backbone.canvases)
    guided, silent = Copycat(), Copycat(replace(NATIVE, guidance=2.5))
    facts = run(backbone=guided, prompt="a fox", guidance=4, steps=3, overwrite=True).facts
    assert facts["settings"]["guidance"] == 4
    assert guided.passes == 2 * backbone.passes
    facts = run(backbone=silent, prompt="", steps=3, overwrite=True).facts
    assert facts["settings"]["guidance"] == 2.5
    assert silent.passes == backbone.passes  # without a prompt guidance changes nothing
    assert facts["text"]["sources"] == {"prompt": "given"}


@pytest.mark.parametrize(
    ("prompt", "negative", "guidance", "lengths"),
    [
        ("a fox", "", 2, [0, 5]),
        ("a fox", "blurred", 2, [5, 7]),
        ("", "blurred", 2, [0, 7]),
        ("", "", 2, [0]),
        ("a fox", "blurred", 1, [5]),
    ],
)
def test_guidance_leads_from_the_negative_prompt(run, prompt, negative, guidance, lengths):
    """exact: which texts the model is asked with; Copycat's states count the letters."""
    asked = set()

    class Listener(Copycat):
        def velocity(self, x, sigma, cond):
            asked.add(int(cond.text[0, 0, 0]))
            return super().velocity(x, sigma, cond)

    run(backbone=Listener(), prompt=prompt, negative=negative, guidance=guidance)
    assert sorted(asked) == lengths


def test_without_a_prompt_the_inputs_are_described(run):
    backbone = Copycat()
    facts = run(backbone=backbone).facts
    text = facts["text"]
    assert facts["settings"]["prompt"] is None
    assert set(text["sources"].values()) == {"offline"}
    assert text["prompt"].startswith(text["appearance"].split(",")[0])
    assert text["motion"] in text["prompt"]
    assert (backbone.canvases[0][1] == len(text["prompt"])).all()
    assert facts["seconds"]["describe"] > 0


def test_ticks_once_a_step(tmp_path, reference):
    film(tmp_path / "driving.mp4", 30, 12)
    backbone, ticks = Copycat(), []
    task = task_of(tmp_path, reference, backbone, steps=3, prompt="a fox", guidance=2)
    list(generate(task, backbone, Stages(), lambda: ticks.append(1)))
    assert len(ticks) == 3 * len(task.segments)


# ---- what comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driving", "settings", "frames", "fps"),
    [
        ({"count": 30, "fps": 25}, {}, 30, 25),
        ({"count": 31, "fps": Fraction(30000, 1001)}, {}, 31, Fraction(30000, 1001)),
        ({"count": 30, "fps": 25}, {"fps": 29.97}, 36, Fraction(30000, 1001)),
        ({"count": 2, "fps": 24}, {}, 2, 24),
        ({"count": 9, "fps": 5}, {}, 9, 5),
        ({"count": 60, "fps": 60}, {"fps": 10}, 10, 10),
        ({"count": 12, "fps": 12}, {"fps": 25, "interpolate": "nearest"}, 25, 25),
        ({"count": 20, "fps": 20}, {"out": "out.gif"}, 20, 20),
        ({"count": 20, "fps": 25}, {"out": "out.webm"}, 20, 25),
        ({"count": 20, "fps": 25}, {"out": "out.mov", "fit": "crop"}, 20, 25),
        ({"times": [0, 1, 2, 10, 11, 29], "count": 6, "fps": 30}, {"fps": 30}, 30, 30),
    ],
)
def test_frames_rate_and_length_are_the_driving_clips(
    run, tmp_path, driving, settings, frames, fps
):
    result = run(driving, **settings)
    made, given = probe(result.out), probe(tmp_path / "driving.mp4")
    assert (result.frames, result.fps) == (made.frames, made.fps) == (frames, fps)
    assert made.duration == pytest.approx(given.duration, abs=0.5 / fps)
    assert made.size == result.size == ((64, 64) if settings.get("fit") == "crop" else (32, 64))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("mode", ["flow", "nearest"])
def test_frame_k_shows_the_driving_clip_at_k_over_fps(run, mode):
    ramp = lambda i, h, w: np.full((h, w, 3), 20 + 4 * i, np.uint8)  # noqa: E731
    result = run({"count": 50, "fps": 25, "draw": ramp}, interpolate=mode)
    levels = np.array([frame.mean() for frame in frames_of(result.out)])
    off = np.abs(levels - (20 + 4 * np.arange(50)))
    # the clip is read at 12 fps to the nearest frame (half a frame, 2 levels), then shown at 25
    assert off[:-2].max() <= (5 if mode == "flow" else 8)
    assert off.mean() <= (1.5 if mode == "flow" else 3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((40, 80), (32, 64)),
        ((80, 40), (64, 32)),
        ((50, 50), (64, 64)),
        ((300, 200), (64, 42)),  # 42.67 wide, rounded to 43, made even
        ((4, 1000), (2, 64)),
        ((1000, 1), (64, 2)),
    ],
)
def test_output_has_the_references_aspect_and_even_sides(run, tmp_path, size, expected):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_png(tmp_path / "reference.png", picture)
    assert run({"count": 3}).size == expected


def test_letterbox_is_cut_back_to_the_driver(run, tmp_path):
    """A driver of the reference's aspect fills the whole output: no bar is left."""
    result = run({"count": 4, "fps": 12, "size": (32, 64)})
    driven = frames_of(tmp_path / "driving.mp4")
    for made, given in zip(frames_of(result.out), driven, strict=True):
        assert np.abs(made.astype(int) - given).mean() < 3


@pytest.mark.parametrize(
    ("driving", "settings", "heard"),
    [
        ({"audio": "aac"}, {}, True),
        ({"audio": "aac"}, {"out": "out.webm"}, True),
        ({"audio": "aac"}, {"audio": False}, False),
        ({"audio": "aac"}, {"out": "out.gif"}, False),
        ({}, {}, False),
    ],
)
def test_sound_is_the_driving_clips(run, driving, settings, heard):
    assert probe(run(driving, **settings).out).has_audio is heard


# ---- record -----------------------------------------------------------------------------------


def test_record_says_what_the_clip_was_made_from(run, tmp_path, reference):
    result = run(seed=7, prompt="a fox")
    record = json.loads((tmp_path / "out.json").read_text())
    assert record == result.facts
    assert result.record == tmp_path / "out.json"
    assert record["synthetic"] is True
    settings = record["settings"]
    assert settings.keys() == {field.name for field in fields(AnimateConfig)}
    assert (settings["seed"], settings["prompt"], settings["backbone"]) == (7, "a fox", "copycat")
    assert (settings["steps"], settings["guidance"], settings["fps"]) == (2, 1.0, 25.0)
    assert record["inputs"]["reference"]["sha256"] == sha256(reference)
    assert record["inputs"]["driving"]["sha256"] == sha256(tmp_path / "driving.mp4")
    weights = {"copycat.safetensors": "0" * 64}
    assert record["backbone"] == {"name": "copycat", "weights": weights, "adapter": None}
    assert (settings["variant"], settings["pose"], record["lead_frames"]) == ("rgb", None, 0)
    assert record["output"]["sha256"] == sha256(result.out)
    assert record["output"]["frames"] == 30
    stages = ("decode", "encode latents", "denoise", "decode latents", "interpolate", "write")
    assert all(record["seconds"][name] >= 0 for name in stages)
    assert record["seconds"]["total"] >= sum(record["seconds"][name] for name in stages) * 0.99
    assert record["seconds_per_generated_frame"] > 0
    assert record["peak_memory_mib"] > 50
    assert {"dreamactor", "torch", "numpy", "av", "python"} <= record["versions"].keys()


def test_stages_count_what_is_inside_once(monkeypatch):
    clock = iter([0, 0, 1, 3, 4])  # made; outer from 0 to 4; inner from 1 to 3
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    stages = Stages()
    with stages("outer"), stages("inner"):
        pass
    assert stages.seconds == {"inner": 2, "outer": 2}


def test_stages_count_each_item_of_a_stream(monkeypatch):
    """exact: the time between two items is the stage's, not what is done with them."""
    now = [0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def slow():
        for k in range(3):
            now[0] += 5
            yield k

    stages = Stages()
    items = []
    for item in stages.each("make", slow()):
        now[0] += 100
        items.append(item)
    assert (items, stages.seconds) == ([0, 1, 2], {"make": 15})


@pytest.fixture(params=[False, True], ids=["fresh", "old"])
def pair(request, tmp_path):
    """Paths of a clip and its record, where perhaps older ones are, and a function that reads."""
    clip, record = tmp_path / "a.mp4", tmp_path / "a.json"
    if request.param:
        clip.write_text("old clip")
        record.write_text("old record")
    return clip, record, lambda: {path.name: path.read_text() for path in tmp_path.iterdir()}


def write_both(clip, record, then=None):
    with both_or_neither(clip, record) as hidden:
        for path in hidden:
            path.write_text("new")
        if then is not None:
            raise then


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit, MediaError])
def test_clip_and_record_appear_both_or_neither(pair, fault):
    clip, record, read = pair
    before = read()
    with pytest.raises(fault):
        write_both(clip, record, fault)
    assert read() == before
    write_both(clip, record)
    assert read() == {"a.mp4": "new", "a.json": "new"}


def test_a_clip_without_its_record_is_taken_back(pair, monkeypatch):
    clip, record, read = pair
    before, real = read(), Path.replace

    def replace(path, target):
        if path.name == record.name and target == record:
            raise OSError(28, "No space left on device")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(MediaError, match=r"a.json: cannot be written: No space left on device"):
        write_both(clip, record)
    assert read() == before


def test_an_error_names_the_file_the_user_knows(tmp_path):
    clip, record = tmp_path / "a.mp4", tmp_path / "a.json"
    with (
        pytest.raises(MediaError, match=f"^{clip}: is full, unlike {record}$"),
        both_or_neither(clip, record) as hidden,
    ):
        raise MediaError(f"{hidden[0]}: is full, unlike {hidden[1]}")


def test_peak_memory_is_known_here():
    assert 50 < peak_memory() < 1e5


# ---- same input, same output --------------------------------------------------------------------


def test_the_same_settings_give_the_same_bytes(run):
    same = {"manifest": False, "overwrite": True}
    first = run(backbone=tiny_nano(), **same).facts["output"]["sha256"]
    again = run(backbone=tiny_nano(), **same).facts["output"]["sha256"]
    other = run(backbone=tiny_nano(), seed=1, **same).facts["output"]["sha256"]
    assert first == again != other


def test_the_same_settings_give_the_same_frames_whatever_signs_them(run):
    """unchanged by: a manifest, whose signature is another one every time; nor by names."""
    clips = [
        np.stack(frames_of(run(backbone=tiny_nano(), out=f"{k}.mp4", manifest=k < 2).out))
        for k in range(3)
    ]
    assert all(np.array_equal(clips[0], clip) for clip in clips[1:])


def test_unchanged_by_the_threads_that_torch_had(run):
    before, clips = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        facts = run(backbone=tiny_nano(), overwrite=True, manifest=False).facts
        clips.append(facts["output"]["sha256"])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert len(set(clips)) == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_asking_for_other_threads_changes_a_level_at_most(tmp_path, reference, threads):
    film(tmp_path / "driving.mp4", 20, 12)
    made = []
    for count in (4, threads):
        backbone = tiny_nano()
        task = task_of(tmp_path, reference, backbone)
        with pipeline._quiet_torch(count):
            made.append(np.stack(list(generate(task, backbone, Stages(), lambda: None))))
    off = np.abs(made[0].astype(int) - made[1])
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-3


# ---- what is asked for ---------------------------------------------------------------------------


def test_keywords_are_the_config():
    ours, theirs = get_type_hints(Settings), get_type_hints(AnimateConfig)
    assert ours.keys() | {"backbone"} == theirs.keys()
    assert list(ours) == [name for name in theirs if name != "backbone"]
    assert dreamactor.animate is animate
    assert dreamactor.AnimateConfig is AnimateConfig
    with pytest.raises(AttributeError, match="no attribute 'dance'"):
        dreamactor.dance  # noqa: B018


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps=0: want 1 to 1000"),
        ({"steps": 1001}, "steps=1001"),
        ({"guidance": -1}, "guidance=-1: want 0 to 100, 1 is off"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"fps": 0}, "fps=0: want 0.1 to 240"),
        ({"fps": -5}, "fps=-5"),
        ({"fps": float("inf")}, "fps=inf"),
        ({"fps": 241}, "fps=241"),
        ({"fit": "stretch"}, "fit='stretch': want letterbox or crop"),
        ({"interpolate": "blend"}, "interpolate='blend': want flow or nearest"),
        ({"backbone": "wan"}, "backbone='wan': no such backbone, nearest is nano"),
        ({"device": "tpu"}, "device='tpu': want cpu, cuda or cuda:N"),
        ({"threads": 0}, "threads=0: want 1 to 256"),
    ],
)
def test_refuses_settings(setting, message):
    with pytest.raises(ConfigError, match=message):
        AnimateConfig("a.png", "b.mp4", "c.mp4", **setting)


def test_preview_plans_and_writes_nothing(tmp_path, reference):
    film(tmp_path / "driving.mp4", 60, 25)
    job = prepare(AnimateConfig(reference, tmp_path / "driving.mp4", tmp_path / "out.mp4"))
    before = sorted(tmp_path.iterdir())
    shown = pipeline.preview(job, Copycat())
    assert sorted(tmp_path.iterdir()) == before
    assert shown["output"] == {"frames": 60, "fps": "25", "height": 32, "width": 64}
    assert [s["new"] for s in shown["segments"]] == [16, 12, 1]
    assert shown["generated_frames"] == 29
    assert shown["estimated_seconds"] >= 0
    assert json.loads(json.dumps(shown)) == shown
