"""Clip metrics, intervals and the evaluation: closed forms, foreign references, resume."""

import fcntl
import math

import cv2
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from dreamactor.bench import evaluate, metrics, report, stats
from dreamactor.bench.baselines import copy_reference, driving_itself
from dreamactor.bench.evaluate import METRICS, Case
from dreamactor.bench.metrics import clip_flow, subject_box
from dreamactor.errors import ConfigError, MediaError, ShapeError

FRAMES, SIDE = 4, 72


def texture(seed=0, side=SIDE + 40):
    """A smooth random picture, (side, side, 3) uint8 with the whole range."""
    rough = np.random.default_rng(seed).random((side, side, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), 2.5)
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) / (high - low) * 255).round().astype(np.uint8)


def moving(seed=0, speed=(2, 1)):
    """A window over a texture, so that every pixel moves by exactly `speed` a frame."""
    wide, (x, y) = texture(seed), speed
    return np.stack(
        [wide[20 - t * y :, 20 - t * x :][:SIDE, :SIDE] for t in range(FRAMES)]
    )  # (T, H, W, 3)


def disc():
    """(T, H, W) mask of a subject that fills the middle."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    return np.repeat((x * x + y * y < 24**2)[None], FRAMES, axis=0)


def blur(clip, sigma):
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip])


def make_case(name="a", domain="human", style="toon", seed=0):
    truth = moving(seed)
    flow = np.broadcast_to(np.float32([2, 1]), (FRAMES - 1, SIDE, SIDE, 2))
    return Case(name, domain, style, "full", truth[0], moving(seed + 50), truth, disc(), flow)


# boxes


def test_subject_box_is_tight_grows_by_the_margin_and_stays_inside():
    mask = np.zeros((3, 20, 30), bool)
    mask[0, 4:9, 5:7] = True
    mask[2, 10:20, 1:3] = True
    assert subject_box(mask).tolist() == [[4, 5, 9, 7], [4, 1, 20, 7], [10, 1, 20, 3]]
    assert subject_box(mask, 2)[2].tolist() == [8, 0, 20, 5]
    assert subject_box(np.zeros((2, 20, 30)), 3).tolist() == [[0, 0, 20, 30]] * 2


# fidelity


def test_psnr_and_l1_of_a_known_error():
    truth = np.full((2, 20, 20, 3), 0.25)
    result = truth + 0.1
    assert metrics.psnr(result, truth) == pytest.approx(20.0)
    assert metrics.l1(result, truth) == pytest.approx(0.1)
    result[1] = truth[1]  # half of the squared error: 10 log10(2) dB better
    assert metrics.psnr(result, truth) == pytest.approx(20 + 10 * math.log10(2))


def test_equal_clips_get_the_cap_and_not_infinity():
    clip = moving()
    assert metrics.psnr(clip, clip) == metrics.PSNR_CAP
    assert metrics.l1(clip, clip) == 0
    assert metrics.ssim(clip, clip) == pytest.approx(1)


def test_bytes_and_floats_give_one_value():
    a, b = moving(0), moving(1)
    floats = a.astype(np.float32) / 255
    for metric in (metrics.psnr, metrics.l1, metrics.ssim, metrics.sharpness_ratio):
        assert metric(floats, b) == pytest.approx(metric(a, b), rel=1e-5)


def test_only_the_box_counts():
    truth = moving()
    result = truth.copy()
    result[:, :30] = 0
    box = np.array([30, 10, 60, 50])
    assert metrics.psnr(result, truth, box) == metrics.PSNR_CAP
    assert metrics.sharpness_ratio(result, truth, box) == pytest.approx(1)
    assert metrics.psnr(result, truth, np.array([29, 10, 60, 50])) < 40
    per_frame = np.tile(box, (FRAMES, 1))
    assert metrics.l1(blur(truth, 1), truth, per_frame) == metrics.l1(blur(truth, 1), truth, box)


def test_ssim_equals_skimage():
    a, b = moving(0), blur(moving(0), 1.5)
    wanted = [
        structural_similarity(
            x, y, channel_axis=2, gaussian_weights=True, use_sample_covariance=False, full=True
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert metrics.ssim(a, b) == pytest.approx(np.mean([w[0] for w in wanted]), abs=1e-10)
    inner = np.mean([w[1][10:40, 20:66] for w in wanted])
    assert metrics.ssim(a, b, np.array([10, 20, 40, 66])) == pytest.approx(inner, abs=1e-10)


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ((20, 30, 24, 33), (64, 64)),  # grown around its middle
        ((66, 66, 72, 72), (64, 64)),  # at the edge: shifted inside
        ((0, 2, 72, 70), (72, 68)),  # big enough: as it is
    ],
)
def test_lpips_cuts_at_least_64_pixels_and_sees_rgb_in_range(box, wanted):
    seen = []
    torch = pytest.importorskip("torch")

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("place", torch.zeros(1))

        def features(self, x):
            return [x]

        def compare(self, a, b):
            seen.append((a[0], b[0]))
            return (a[0] - b[0]).abs().mean((1, 2, 3))

    a, b = moving(0), moving(1)
    a[2] = b[2]  # 0 without a look
    value = metrics.lpips(a, b, Spy(), np.array(box), batch=2)
    assert [len(x) for x, _ in seen] == [2, 1]
    assert seen[0][0].shape[1:] == (3, *wanted)
    assert -1 <= seen[0][0].min() < seen[0][0].max() <= 1
    if wanted == (72, 68):
        assert value == pytest.approx(2 * metrics.l1(a, b, np.array(box)), rel=1e-5)


# sharpness


def test_sharpness_falls_with_blur_and_rises_with_noise():
    truth = moving()
    ratios = [metrics.sharpness_ratio(blur(truth, s), truth) for s in (0.5, 1, 2, 4)]
    assert metrics.sharpness_ratio(truth, truth) == pytest.approx(1)
    assert 1 > ratios[0] > ratios[1] > ratios[2] > ratios[3] > 0
    noise = np.random.default_rng(0).normal(size=truth.shape)
    noisy = [np.clip(truth / 255 + s * noise, 0, 1) for s in (0.01, 0.03, 0.1)]
    rising = [metrics.sharpness_ratio(n, truth) for n in noisy]
    assert 1 < rising[0] < rising[1] < rising[2]
    sharpened = np.clip(2 * (truth / 255) - blur(truth / 255, 1), 0, 1)
    assert metrics.sharpness_ratio(sharpened, truth) > 1


def test_sharpness_halves_when_edges_get_twice_as_wide():
    def ramp(width):
        line = np.clip((np.arange(64) - 20) / width, 0, 1)
        return np.broadcast_to(line[:, None], (1, 64, 64, 3))

    assert metrics.sharpness_ratio(ramp(16), ramp(8)) == pytest.approx(0.5)


def test_sharpness_is_undefined_on_a_flat_truth():
    flat = np.full((1, 20, 20, 3), 0.5)
    assert math.isnan(metrics.sharpness_ratio(flat, flat))


# motion


def test_motion_error_is_near_zero_for_the_truth_and_the_speed_for_a_frozen_clip():
    case = make_case()
    seen = clip_flow(case.truth)
    assert seen.shape == case.flow.shape
    assert metrics.flow_epe(seen, case.flow, case.mask) < 0.15  # what DIS itself errs
    still = clip_flow(np.repeat(case.truth[:1], FRAMES, axis=0))
    speed = metrics.flow_epe(0 * case.flow, case.flow, case.mask)
    assert speed == pytest.approx(math.sqrt(5), rel=1e-6)
    assert metrics.flow_epe(still, case.flow, case.mask) == pytest.approx(speed, rel=0.02)


def test_motion_error_looks_at_the_subject_only():
    flow = np.zeros((1, 8, 8, 2), np.float32)
    seen = flow.copy()
    seen[:, :4] = 3, 4
    mask = np.zeros((2, 8, 8), bool)
    assert math.isnan(metrics.flow_epe(seen, flow, mask))
    mask[0, 3:5] = True
    assert metrics.flow_epe(seen, flow, mask) == pytest.approx(2.5)


def test_dynamic_degree_is_the_fastest_twentieth_over_the_threshold():
    seen = np.zeros((3, 256, 512, 2), np.float32)
    assert metrics.dynamic_degree(seen) == 0
    assert not metrics.is_dynamic(seen)
    seen[:, :, :25] = 0, -12  # 25 of 512 columns: not quite 5 %
    count = int(256 * 512 * 0.05)
    wanted = 12 * 25 * 256 / count / 6  # VBench dynamic_degree.py by hand
    assert metrics.dynamic_degree(seen) == pytest.approx(wanted)
    assert metrics.is_dynamic(seen)
    assert math.isnan(metrics.dynamic_degree(seen[:0]))


def test_flicker_of_a_known_alternation():
    clip = np.zeros((5, 16, 16, 3), np.uint8)
    assert metrics.temporal_flicker(clip) == 1
    clip[1::2] = 51
    assert metrics.temporal_flicker(clip) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (np.zeros((3, SIDE, SIDE, 3), np.uint8), ShapeError, "want the same"),
        (np.full((FRAMES, SIDE, SIDE, 3), 255.0), MediaError, "want \\[0, 1\\]"),
        (np.zeros((FRAMES, SIDE, SIDE, 3), np.int32), MediaError, "holds int32"),
    ],
)
def test_refuses_clips_that_do_not_fit(result, error, message):
    with pytest.raises(error, match=message):
        metrics.psnr(result, moving())


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (0, 0, SIDE + 1, 9), (-1, 0, 9, 9), (1, 2, 3)])
def test_refuses_boxes_that_are_empty_outside_or_misshapen(box):
    with pytest.raises(ShapeError, match="box"):
        metrics.psnr(moving(), moving(), np.array(box))


# intervals


def test_bootstrap_interval_covers_the_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        interval = stats.bootstrap(rng.normal(3.0, 2.0, 40), seed)
        hits += interval.low <= 3.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_bootstrap_depends_on_values_and_seed_only_and_drops_nan():
    values = [1.0, 2.0, 4.0, 8.0]
    assert stats.bootstrap(values, 1) == stats.bootstrap([*values, math.nan], 1)
    many = np.random.default_rng(0).random(30)
    assert stats.bootstrap(many, 1) != stats.bootstrap(many, 2)
    assert stats.bootstrap([5.0]) == stats.Interval(5.0, 5.0, 5.0, 1)
    assert stats.bootstrap([math.nan]).clips == 0


def test_pairing_cancels_what_the_clips_have_in_common():
    level = np.random.default_rng(0).normal(0, 10, 50)
    a = {f"clip {i}": v + 1 for i, v in enumerate(level)}
    b = {f"clip {i}": v for i, v in enumerate(level)}
    difference = stats.paired_difference(a, b)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((1, 1, 1))
    with pytest.raises(ConfigError, match="no clip in common"):
        stats.paired_difference(a, {"other": 1.0})


def test_tables_read_as_markdown():
    interval = stats.Interval(1.234, 1.0, 1.5, 9)
    assert stats.format_interval(interval) == "1.23 [1.00, 1.50]"
    assert stats.format_interval(interval, 1, "plus-minus") == "1.2 ± 0.2"
    assert stats.format_interval(stats.bootstrap([])) == "-"
    table = stats.markdown_table(["a", "b"], [["x", "1"]])
    assert table == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


# evaluation

SYSTEMS = {"copy": copy_reference, "driving": driving_itself}


def test_evaluation_refuses_a_file_that_another_process_writes(tmp_path):
    path = tmp_path / "r"
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is at work"):
            evaluate.run([make_case()], SYSTEMS, path)
    assert evaluate.run([make_case()], SYSTEMS, path)


def test_evaluation_resumes_after_a_cut_line_and_measures_nothing_twice(tmp_path):
    cases = [make_case("a"), make_case("b", "animal", seed=1)]
    path = tmp_path / "runs" / "results.jsonl"
    first = evaluate.run(cases, SYSTEMS, path)
    assert [(r.case, r.system) for r in first] == [
        (case, system) for case in "ab" for system in ("copy", "driving", "truth")
    ]
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:5]) + whole[5][:40])

    calls = []

    def spy(reference, driving):
        calls.append(1)
        return driving_itself(reference, driving)

    again = evaluate.run(iter(cases), {"copy": copy_reference, "driving": spy}, path)
    assert len(calls) == 1
    assert [(r.case, r.system) for r in again] == [(r.case, r.system) for r in first]
    for old, new in zip(first, again, strict=True):
        assert old.metrics == pytest.approx(new.metrics, nan_ok=True)
    assert [r.metrics["psnr"] for r in evaluate.read(path)] == [r.metrics["psnr"] for r in again]


def test_truth_row_is_the_ceiling_and_a_copy_stands_still(tmp_path):
    records = {r.system: r.metrics for r in evaluate.run([make_case()], SYSTEMS, tmp_path / "r")}
    truth, copy = records["truth"], records["copy"]
    assert set(truth) == set(METRICS)
    assert (truth["psnr"], truth["l1"]) == (metrics.PSNR_CAP, 0)
    assert truth["sharpness_ratio"] == pytest.approx(1)
    assert truth["flow_epe"] < 0.15 < 2 < copy["flow_epe"]
    assert copy["dynamic_degree"] < 0.01
    assert copy["temporal_flicker"] == 1 > truth["temporal_flicker"]


def test_report_has_every_table_and_leaves_out_what_was_not_measured(tmp_path):
    cases = [make_case("a"), make_case("b", "animal", "photo", seed=1)]
    evaluate.run(cases, SYSTEMS, tmp_path / "r")
    text = report.report(tmp_path / "r", "make bench", "2 cores", seed=7, baseline="copy")
    assert "`make bench` on 2 cores; seed 7; 2 clips" in text
    for heading in ("### Against copy", "### By domain", "### By style", "### By framing"):
        assert heading in text
    assert "| driving - copy | 2 |" in text
    assert "| animal | copy | 1 |" in text
    assert "ST-LPIPS" not in text
    rows = [line for line in text.split("###")[0].splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| copy", "| driving", "| truth"]


def test_evaluation_refuses_what_would_mix_or_mislead(tmp_path):
    path = tmp_path / "r"
    evaluate.run([make_case()], {}, path)
    with pytest.raises(ConfigError, match="name another file"):
        evaluate.run([make_case()], {}, path, options=evaluate.Options(margin=3))
    with pytest.raises(ConfigError, match="added by itself"):
        evaluate.run([], {"truth": copy_reference}, path)
    with pytest.raises(ConfigError, match="unique"):
        evaluate.run([make_case(), make_case()], {}, path)
    with pytest.raises(ShapeError, match="system 'short' on 'b'"):
        evaluate.run([make_case("b")], {"short": lambda reference, driving: driving[1:]}, path)
    (tmp_path / "other").write_text("[]\n")
    with pytest.raises(ConfigError, match="no results file"):
        evaluate.read(tmp_path / "other")
    with pytest.raises(ConfigError, match="do not exist"):
        evaluate.read(tmp_path / "missing")
    with pytest.raises(ShapeError, match="flow is"):
        Case("x", "d", "s", "f", texture(0, SIDE), moving(), moving(), disc(), np.zeros((1, 2, 2)))
