"""The bench: cases with their truth, models as systems, goals, and whole runs on the mini pack."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filming import film, frames_of
from numpy.testing import assert_array_equal
from test_nano import NATIVE, save, tiny_nano
from test_variant import Known

import dreamactor
from dreamactor import cli
from dreamactor.backbones.load import load_backbone
from dreamactor.bench import evaluate, metrics, sheets, stats, timing
from dreamactor.bench.baselines import copy_reference
from dreamactor.bench.cases import Source, Studio, cases
from dreamactor.bench.evaluate import METRICS, Case, Record
from dreamactor.bench.goals import Goal, goals_table, motion_goals, reconstruction_goals
from dreamactor.bench.motion import NanoBenchConfig, bench_nano
from dreamactor.bench.page import results_page
from dreamactor.bench.reconstruction import VAEBenchConfig, bench_vae, samples_table
from dreamactor.bench.systems import Animation, Reconstruction
from dreamactor.bench.variants import VariantsBenchConfig, exactly, variant_goals
from dreamactor.diffusion import driving, skeletons
from dreamactor.diffusion.job import AnimateConfig, prepare
from dreamactor.diffusion.pipeline import generate, resolve
from dreamactor.errors import AssetError, ConfigError
from dreamactor.image import write_png
from dreamactor.provenance import Stages
from dreamactor.world.cast import load_cast, save_cast, subset
from dreamactor.world.pairs import PairSampler
from dreamactor.world.scene import Joints
from dreamactor.world.tracks import Exact, track_of

MINI = Path(dreamactor.__file__).parent / "data" / "mini.castpack"
SIDE = 64


@pytest.fixture(scope="module")
def cast():
    return load_cast(MINI)


@pytest.fixture(scope="module")
def sampler(cast):
    ready = PairSampler(cast, "test", SIDE)
    try:
        ready.renderer.context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    return ready


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save(tiny_nano(), folder)
    return folder


def noise_case(index, seed=0, frames=16, side=SIDE):
    """A case of noise, without a renderer."""
    rng = np.random.default_rng(100 * seed + index)
    clip = rng.integers(0, 256, (2 * frames + 2, side, side, 3), np.uint8)
    return Case(
        name=f"case {index}", domain="human", style="toon", framing="full",
        reference=clip[0], before=clip[1], driving=clip[2 : 2 + frames], truth=clip[2 + frames :],
        mask=np.ones((frames, side, side), bool),
        flow=np.zeros((frames - 1, side, side, 2), np.float32), index=index,
    )  # fmt: skip


# cases


def test_a_case_is_its_pair_with_the_driving_clip_aligned(cast, sampler):
    found = list(cases(cast, 2, seed=3, size=SIDE))
    assert [c.name for c in found] == ["test/3/0000", "test/3/0001"]
    case, pair = found[1], sampler.pair(3, 1, truth=True)
    assert_array_equal(case.truth, pair.target[..., :3])
    assert_array_equal(case.mask, pair.target[..., 3] == 255)
    assert_array_equal(case.flow, pair.flow)
    assert_array_equal(case.reference, pair.reference[..., :3])
    assert_array_equal(np.stack([case.before, *case.driving]), pair.driving[..., :3])
    for joints, whole in ((case.joints, pair.target_joints), (case.driver, pair.driving_joints)):
        assert_array_equal(joints.pixels, whole.pixels[1:])
    spec = pair.spec
    assert (case.domain, case.style) == (spec.domain, spec.target.style.kind)
    assert (case.framing, case.index) == (spec.target.framing, 1)


# systems


@pytest.mark.parametrize(
    ("index", "frames", "variant", "guidance"),
    [(0, 16, "rgb", 1.0), (5, 16, "rgb", 3.0), (1, 20, "rgb", 1.0), (2, 16, "pose", 1.0)],
)
def test_a_case_comes_out_as_animate_makes_it(tmp_path, index, frames, variant, guidance):
    """same: of one segment or two, driven by the clip or by its skeleton behind a second; guided
    on the caption in the first two of three steps."""
    case, estimator = noise_case(index, frames=frames), Known() if variant == "pose" else None
    case = replace(case, caption="a fox waves")
    write_png(tmp_path / "reference.png", case.reference)
    lossless = {"codec": "libx264rgb", "pix_fmt": "rgb24", "options": {"crf": "0"}}
    clip = film(
        tmp_path / "d.mp4", frames, 12, size=(SIDE, SIDE), draw=lambda i, *_: case.driving[i],
        **lossless,
    )  # fmt: skip
    assert_array_equal(np.stack(frames_of(clip)), case.driving)
    nano = tiny_nano()
    nano.variant, nano.lead = variant, 4 if variant == "pose" else 0
    config = AnimateConfig(
        tmp_path / "reference.png", clip, tmp_path / "o.mp4", variant=variant, steps=3,
        seed=7 + index, guidance=guidance, guidance_span="0:0.6",
    )  # fmt: skip
    job = prepare(config)
    skeleton = None
    if estimator is not None:
        track, _ = driving.find_joints(job, nano.native, estimator)
        skeleton = skeletons.skeleton(track, nano)
    task = resolve(job, nano, case.caption if guidance != 1 else "", skeleton)
    with torch.inference_mode():
        wanted = list(generate(task, nano, Stages(), lambda: None))[task.lead :]
    guides = {"captions": guidance != 1, "guidance": guidance, "span": (0.0, 0.6)}
    system = Animation(nano, 3, seed=7, estimator=estimator, **guides)
    assert_array_equal(system.animate([case])[0], np.stack(wanted))


def test_true_skeletons_drive_as_an_estimator_that_cannot_err(cast, sampler):
    """same: as by `world.tracks.Exact`; and a case that does not know them is refused."""
    case = next(cases(cast, 1, size=SIDE))
    nano = tiny_nano()
    nano.variant, nano.lead = "pose", 4
    told = Exact(track_of([case.driver], (SIDE, SIDE), nano.native.fps))
    wanted = Animation(nano, 1, estimator=told).animate([case])[0]
    found = Animation(nano, 1, estimator=Known(), exact=True).animate([case])[0]
    assert_array_equal(found, wanted)
    assert np.abs(wanted - Animation(nano, 1, estimator=Known()).animate([case])[0]).any()
    with pytest.raises(ConfigError, match="does not know its driver's joints"):
        Animation(nano, 1, estimator=Known(), exact=True).animate([noise_case(0)])


def test_animations_are_unchanged_by_their_batch_and_differ_by_case():
    nano, three = tiny_nano(), [noise_case(i) for i in range(3)]
    system = Animation(nano, 2)
    together, alone = system.animate(three), [system.animate([case])[0] for case in three]
    for a, b in zip(together, alone, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
    moved = Animation(nano, 2, seed=1).animate(three[:1])[0]
    assert np.abs(moved.astype(int) - alone[0]).mean() > 1  # another noise


def test_the_weights_that_ship_follow_their_driver(cast, sampler):
    """In one step a clip is 1 dB nearer to the truth by its own driver than by another one's."""
    *_, case, other = cases(cast, 4)
    animation, box = Animation(load_backbone("nano"), 1), metrics.subject_box(case.mask)
    swapped = replace(case, driving=other.driving, before=other.before)
    own, wrong = (metrics.psnr(animation.animate([c])[0], case.truth, box) for c in (case, swapped))
    assert own > wrong + 1


def test_the_frame_before_is_shown_beside_the_reference_where_asked_for():
    seen = []

    class Watched(type(tiny_nano())):
        def encode(self, canvas, text):
            seen.append(canvas.pixels[0, :, :, :, SIDE:])
            return super().encode(canvas, text)

    nano, case = tiny_nano(), noise_case(0)
    nano.__class__ = Watched
    for before in (False, True):
        Animation(nano, 1, before=before).animate([case])
    without, shown = (((p + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy() for p in seen)
    assert_array_equal(without, np.stack([case.driving[0], *case.driving]))
    assert_array_equal(shown, np.stack([case.before, *case.driving]))


def test_reconstruction_encodes_the_truth_behind_the_reference():
    nano, case = tiny_nano(), noise_case(0)
    whole = np.concatenate([case.reference[None], case.truth])
    system = Reconstruction(nano.vae)
    assert_array_equal(system.animate([case])[0], system([whole])[0][1:])
    other = system.animate([noise_case(1)])[0]
    assert np.abs(other.astype(int) - system.animate([case])[0]).mean() > 1


def test_animation_refuses_another_size_and_another_variant():
    with pytest.raises(ConfigError, match="set size=64"):
        Animation(tiny_nano(), 1).animate([noise_case(0, side=72)])
    with pytest.raises(ConfigError, match="variant=pose: the weights of nano are trained for rgb"):
        Animation(tiny_nano(), 1, estimator=Known())


# measuring


def test_lpips_of_several_looks_at_the_truth_once_and_at_the_frames_asked_for():
    looks = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("place", torch.zeros(1))

        def features(self, x):
            looks.append(len(x))
            return [x]

        def compare(self, a, b):
            return (a[0] - b[0]).abs().mean((1, 2, 3))

    truth, one, two = (noise_case(i).truth for i in range(3))
    values = metrics.lpips_each([one, truth, two], truth, Spy(), frames=3)
    assert looks == [3, 3, 3]  # of the truth, and of the two that differ
    chosen = [0, 8, 15]
    wanted = [2 * metrics.l1(clip[chosen], truth[chosen]) for clip in (one, truth, two)]
    assert values == pytest.approx(wanted, rel=1e-5)


def test_a_run_is_unchanged_by_batch_and_asks_for_what_is_missing(tmp_path):
    three = [noise_case(i) for i in range(3)]
    systems = {"copy": copy_reference, "nano": Animation(tiny_nano(), 1)}
    whole = evaluate.Options(whole=True)
    one = evaluate.run(three, systems, tmp_path / "a", options=whole)
    many = evaluate.run(three, systems, tmp_path / "b", options=whole, batch=2)
    assert [(r.case, r.system) for r in one] == [(r.case, r.system) for r in many]
    for a, b in zip(one, many, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-3, nan_ok=True)
        box_is_all = a.metrics["ssim"], a.metrics["sharpness_ratio"]
        assert box_is_all == pytest.approx((a.metrics["ssim_frame"], a.metrics["sharpness_frame"]))
    names = [f"case {i}" for i in range(4)]
    assert evaluate.missing(tmp_path / "a", systems, names) == ["case 3"]
    assert evaluate.missing(tmp_path / "a", [*systems, "other"], names) == names
    assert evaluate.missing(tmp_path / "none", systems, names) == names
    with pytest.raises(ConfigError, match=r"made with .'whole': True., now .'whole': False."):
        evaluate.run(three, systems, tmp_path / "a")


# intervals and goals


def test_ratios_and_differences_of_groups():
    level = dict(enumerate(np.random.default_rng(0).uniform(1, 9, 40)))
    ratio = stats.paired_ratio({k: v / 2 for k, v in level.items()}, level)
    assert (ratio.mean, ratio.low, ratio.high, ratio.clips) == pytest.approx((0.5, 0.5, 0.5, 40))
    apart = stats.group_difference([5.0] * 9, [2.0, math.nan, 2.0])
    assert (apart.mean, apart.low, apart.high, apart.clips) == (3, 3, 3, 2)
    wide = stats.group_difference(level.values(), level.values())
    assert wide.low < wide.mean == 0 < wide.high
    assert stats.group_difference([], [1.0]).clips == stats.paired_ratio({}, level).clips == 0


def records_of(system, domain="human", style="textured", count=4, **values):
    found = dict.fromkeys(METRICS, math.nan) | values
    return [
        Record(f"{domain} {style} {i}", system, domain, style, "full", 0.1, found)
        for i in range(count)
    ]


def test_goals_say_pass_or_miss_and_by_how_much():
    rows = [
        *records_of("copy", psnr=15.0, lpips=0.5, flow_epe=4.0),
        *records_of("driving", psnr=11.0, lpips=0.3, flow_epe=0.5),
        *records_of("flow warp", psnr=16.0, lpips=0.4, flow_epe=3.0),
        *records_of("nano", psnr=23.0, lpips=0.2, flow_epe=1.0, sharpness_ratio=0.8),
        *records_of("nano", "animal", psnr=21.0),
        *records_of("nano", "human", "toon", count=2, psnr=20.0),
    ]
    goals = {g.name: g for g in motion_goals(rows, "nano")}
    assert {name: g.verdict for name, g in goals.items()} == {
        "PSNR above the copy of the reference": "pass by 2.00 dB",
        "PSNR": "pass by 0.00 dB",  # four of 23, two of 20
        "ST-LPIPS over that of the best classical one, driving": "miss by 0.17",
        "motion error over that of the copy": "pass by 0.25",
        "sharpness over the truth's": "miss by 0.05",
        "PSNR of animals minus that of humans": "pass by 0.50 dB",
        "PSNR of toon minus that of textured": "miss by 1.00 dB",
    }
    assert goals["sharpness over the truth's"].wanted == "0.85 to 1.15"
    table = goals_table(motion_goals(rows[:12], ""))
    assert table.count("| not measured |") == 7


def test_goals_of_variants_are_parts_of_the_gap():
    """exact: 1.5 of the 2 dB between pose and oracle; no gap, no part of it."""
    rows = [
        *records_of("pose", psnr=15.0),
        *records_of("end-to-end", psnr=16.5),
        *records_of("oracle", psnr=17.0),
    ]
    part, animals = variant_goals(rows)
    assert (part.measured.mean, part.verdict) == (pytest.approx(0.75), "miss by 0.05")
    assert animals.verdict == "not measured"
    rows += [*records_of("pose", "animal", psnr=14.0), *records_of("end-to-end", "animal", psnr=14)]
    assert variant_goals(rows)[1].verdict == "pass by 0.00 dB"
    assert exactly("pose@1") == "pose, exact@1"
    told = [*rows, *records_of(exactly("pose"), "animal", psnr=14.5)]
    assert variant_goals(told)[1].verdict == "miss by 0.50 dB"
    below = [*rows[:8], *records_of("oracle", psnr=14.0)]
    assert variant_goals(below)[0].verdict == "not measured"
    assert variant_goals(rows[:8]) == []


def test_exact_rows_of_variants_have_names_of_their_own():
    config = VariantsBenchConfig(pose=Path("p"), others="rank16:a/b.safetensors, full:folder")
    assert config.variants == {
        "pose": Path("p"), "rank16": Path("a/b.safetensors"), "full": Path("folder"),
    }  # fmt: skip
    for settings, said in (
        ({}, "no pose, rgb or others"),
        ({"others": "rank16"}, "want NAME:PATH"),
        ({"others": "copy:a"}, "there is a row 'copy'"),
        ({"others": "a:b,a:c"}, "there is a row 'a'"),
    ):
        with pytest.raises(ConfigError, match=said):
            VariantsBenchConfig(**settings)


def test_goals_of_the_autoencoder_name_every_sample():
    rows = records_of("vae", psnr=34.5)
    goals = reconstruction_goals(rows, "vae", {"astronaut": 27.0, "bikes": 28.0})
    assert [g.verdict for g in goals] == ["pass by 1.50 dB", "miss by 1.00 dB", "pass by 0.00 dB"]
    assert "| 27.00 | miss" in goals_table(goals)
    assert reconstruction_goals(rows, "vae", {})[1].verdict == "not measured"
    assert Goal("x", "y", stats.bootstrap([3.0]), high=2).wanted == "at most 2"


# pictures


def test_zoom_is_pixel_by_pixel_and_stays_in_the_frame():
    frame = noise_case(0).reference
    cut = sheets.zoom(frame, np.array([40.0, 30.0]))
    assert cut.shape == (128, 128, 3)
    assert_array_equal(cut[::4, ::4], frame[14:46, 24:56])
    assert_array_equal(sheets.zoom(frame, np.array([-9.0, 99.0]))[::4, ::4], frame[32:, :32])


def test_zooms_show_the_frame_in_which_the_joints_are_seen():
    truth = np.zeros((5, SIDE, SIDE, 3), np.uint8)
    truth[..., 0] = 50 * np.arange(5)[:, None, None]  # red, as no text is
    visible = np.zeros((6, 2), bool)  # the reference first
    visible[0] = visible[4] = True
    joints = Joints(("head", "wrist_r"), np.full((6, 2, 2), 32.0), np.ones((6, 2)), visible)
    picture = sheets.zoom_block(truth, truth, joints, "x")
    assert (picture == (150, 0, 0)).all(-1).sum() == 2 * 3 * 128 * 128  # frame 3


# whole runs


def test_bench_nano_resumes_and_says_everything(sampler, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "CLIPS", 1)
    settings = {"size": SIDE, "steps": "1,2", "lpips": 0, "weights": weights}
    config = NanoBenchConfig(count=1, **settings)
    report = bench_nano(MINI, tmp_path / "run", config)
    text = report.read_text()
    rows = [line.split(" | ")[0] for line in text.split("###")[0].splitlines() if line[:2] == "| "]
    names = ["copy", "driving", "flow warp", "vae", "nano, 1 step", "nano, 2 steps", "truth"]
    assert rows[2:] == [f"| {name}" for name in names]
    assert f"--cast mini.castpack --out FOLDER count=1 weights={weights.name} lpips=0" in text
    assert str(tmp_path) not in text
    assert "| PSNR above the copy of the reference | humans | at least 6 dB |" in text
    assert "| draw a pair | encode | denoise | decode | nano, 2 steps |" in text
    assert {"contact.png", "worst.png", "timing.json"} <= {p.name for p in report.parent.iterdir()}

    results = report.parent / "results.jsonl"
    before = results.read_text()
    bench_nano(MINI, tmp_path / "run", NanoBenchConfig(count=2, processes=1, **settings))
    after = results.read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 1 + 2 * len(names)
    with Studio(Source(MINI, size=SIDE)) as studio:  # drawn and measured in a worker above
        here = evaluate.measure(copy_reference(*_inputs(case := studio.case(1))), case)
    there = json.loads(after.splitlines()[len(before.splitlines())])
    assert (there["case"], there["system"]) == ("test/0/0001", "copy")
    assert there["metrics"]["psnr"] == pytest.approx(here["psnr"])
    with pytest.raises(ConfigError, match="name another file"):
        bench_nano(MINI, tmp_path / "run", NanoBenchConfig(count=1, before=True, **settings))


def _inputs(case):
    return case.reference, case.driving


def test_bench_vae_measures_clips_and_installed_samples(sampler, weights, tmp_path):
    config = VAEBenchConfig(count=2, size=SIDE, lpips=0, weights=weights / "vae.safetensors")
    report = bench_vae(MINI, tmp_path / "run", config)
    text = report.read_text()
    assert "SSIM frame ↑" in text
    assert "| PSNR on the subject's box | test clips | at least 33 dB |" in text
    assert (report.parent / "contact.png").is_file()
    pytest.importorskip("skimage")
    samples = {s["name"]: s for s in json.loads((report.parent / "samples.json").read_text())}
    assert samples["astronaut"]["frames"] == 1
    assert samples["astronaut as a clip"]["frames"] == 16
    assert "| astronaut | photograph | 1 |" in text


def test_the_page_says_what_was_not_measured(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="no report"):
        results_page(tmp_path / "page.md", {"nano": tmp_path / "run"})
    (tmp_path / "run" / "report.md").write_text("the table\n")
    page = results_page(tmp_path / "page.md", {"nano": tmp_path / "run", "vae": None}).read_text()
    assert "## Motion transfer\n\nthe table\n" in page
    assert "Not measured yet: `dreamactor bench vae" in page
    assert samples_table([]).startswith("Not measured")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nano", "--cast", "none.castpack"], "none.castpack: no such cast pack"),
        (["nano", "--cast", "{train}"], "no test characters"),
        (["nano", "--cast", "{mini}", "steps=2,x"], "steps=2,x: want whole numbers"),
        (["nano", "--cast", "{mini}", "steps=0"], "steps=0: want 1 to 1000"),
        (["nano", "--cast", "{mini}", "guidance=2"], "guidance=2: wants text, captions=true"),
        (["nano", "--cast", "{mini}", "step=2"], "nearest is steps"),
        (["nano", "--cast", "{mini}", "count=0"], "count=0: want 1 or more"),
        (["nano", "--cast", "{mini}", "size=100"], "nearest is 96"),
        (["nano", "--cast", "{mini}", "device=gpu"], "want cpu, cuda or cuda:N"),
        (["nano", "--cast", "{mini}", "weights=nowhere"], "nowhere"),
        (["vae", "--cast", "{mini}", "weights=nowhere"], "weights are missing"),
        (["vae", "--cast", "{mini}", "weights=nowhere", "steps=2"], "unknown setting 'steps'"),
    ],
)
def test_refuses_in_one_line(cast, tmp_path, monkeypatch, capsys, words, message):
    looks = {n for n, look in cast.looks.items() if look.split == "train"}
    motions = {n for n, motion in cast.motions.items() if motion.split == "train"}
    places = {"mini": MINI, "train": tmp_path / "train.castpack"}
    save_cast(subset(cast, looks, motions, set()), places["train"])
    words = [w.format(**places) for w in words]
    monkeypatch.setattr(
        sys, "argv", ["dreamactor", "bench", *words[:3], "--out", str(tmp_path / "out"), *words[3:]]
    )
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_the_tiny_model_has_the_size_of_these_tests():
    assert (NATIVE.height, NATIVE.frames, NATIVE.steps) == (SIDE, 17, 2)


def test_measuring_needs_no_decoder_of_videos() -> None:
    """GPU machines that train and measure have no PyAV (scripts/gpu.sh)."""
    code = (
        "import sys; sys.modules['av'] = None\n"
        "import dreamactor.bench.motion, dreamactor.training.nano, dreamactor.training.export"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
