"""Metrics without the truth, joints, sets, damages and their validation: closed forms, monotone."""

import json
import math

import cv2
import numpy as np
import pytest
import torch

from dreamactor.bench import damages, validation, validation_report
from dreamactor.bench.agreement import spearman
from dreamactor.bench.damages import STRENGTHS, damage
from dreamactor.bench.metrics import (
    appearance,
    clip_flow,
    consistency,
    distance,
    drift,
    following,
    imaging,
    joints,
    smoothness,
)
from dreamactor.bench.metrics.every import Known, measure_every
from dreamactor.bench.metrics.features import cell_weights, features_of, moving
from dreamactor.bench.metrics.table import METRICS
from dreamactor.bench.perceptual import TRUNKS, Perceptual
from dreamactor.bench.pointing import Pointing
from dreamactor.bench.validation import MetricsBenchConfig, Row
from dreamactor.bench.validation_report import CLEAN, reaction
from dreamactor.conditioning.skeleton import PoseTrack
from dreamactor.errors import ConfigError, ShapeError

FRAMES, SIDE = 12, 96
BY_NAME = {metric.name: metric for metric in METRICS}


def texture(seed, side=SIDE):
    """A smooth random picture with fine grain, (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    soft = cv2.GaussianBlur(rng.random((side, side, 3)).astype(np.float32), (0, 0), 1.2)
    low, high = soft.min(), soft.max()
    return ((soft - low) / (high - low) * 255).round().astype(np.uint8)


def hopping(who=1, place=(20, 30), size=24, where=0):
    """(T, H, W, 3) a textured square that goes up and down before a still wall, and its mask."""
    frames, masks = [], []
    body = cv2.resize(texture(who, 24), (size, size))
    for t in range(FRAMES):
        y = round(place[0] + size * (0.5 + 0.5 * math.sin(2 * math.pi * t / FRAMES + t * t / 60)))
        frame, mask = texture(where), np.zeros((SIDE, SIDE), bool)
        frame[y : y + size, place[1] : place[1] + size] = body
        mask[y : y + size, place[1] : place[1] + size] = True
        frames.append(frame)
        masks.append(mask)
    return np.stack(frames), np.stack(masks)


@pytest.fixture(scope="module")
def net():
    """A trunk of the right shape, few channels and random weights."""
    draw, state, before = torch.Generator().manual_seed(0), {}, 3
    for s, (stage, side, channels) in enumerate(
        zip(TRUNKS["alex"], (11, 5, 3, 3, 3), (8, 12, 16, 12, 12), strict=True), start=1
    ):
        assert len(stage.convs) == 1
        weight = torch.randn(channels, before, side, side, generator=draw)
        state[f"conv{s}_1.weight"] = weight / weight[0].numel() ** 0.5
        state[f"conv{s}_1.bias"] = torch.zeros(channels)
        state[f"head{s}"] = torch.ones(channels)
        before = channels
    return Perceptual("alex", state)


# joints


def test_akd_counts_joints_of_both_and_mkr_and_pck_all_of_the_truth():
    truth = np.zeros((2, 3, 2))
    result = truth.copy()
    result[0, 0] = 3, 4  # 5 pixels off
    result[1, 2] = 99, 99  # far off, but not in the truth
    known = np.array([[1, 1, 1], [1, 1, 0]], bool)
    found = np.array([[1, 1, 0], [1, 1, 1]], bool)
    size = np.array([40.0, 60.0])
    assert joints.akd(result, truth, found, known) == pytest.approx(5 / 4)
    assert joints.mkr(found, known) == pytest.approx(1 / 5)
    assert joints.pck(result, truth, found, known, size) == pytest.approx(3 / 5)
    assert joints.pck(result, truth, found, known, size, part=0.125) == pytest.approx(4 / 5)
    none = np.zeros_like(known)
    assert math.isnan(joints.mkr(found, none))
    assert math.isnan(joints.akd(result, truth, none, known))
    with pytest.raises(ShapeError, match="want"):
        joints.akd(result[:1], truth, found, known)


def test_joints_of_an_estimator_stand_in_the_truths_order_and_of_the_surest():
    """exact: another order, a joint that it lacks, one that it is not sure of, two people."""
    at = np.arange(2 * 2 * 3 * 2, dtype=np.float32).reshape(2, 2, 3, 2)
    sure = np.full((2, 2, 3), 0.9, np.float32)
    sure[:, 0] = 0.5
    sure[1, 1, 2] = 0.2
    track = PoseTrack(("neck", "head", "hip_l"), at, sure, 8, 8, 12.0)
    places, found, knows = joints.as_found(track, ("head", "tail", "hip_l"))
    assert places[:, [0, 2]].tolist() == at[:, 1, [1, 2]].tolist()
    assert found.tolist() == [[True, False, True], [True, False, False]]
    assert knows.tolist() == [True, False, True]


def test_a_truth_is_looked_at_once_for_all_clips_of_its_case():
    """exact: joints of both are the estimator's, in 3 of 5 frames; hidden ones do not count."""
    looks = []

    class Brightness:
        def __call__(self, frames, fps):
            looks.append((len(frames), fps))
            at = np.float32([frame.mean() for frame in frames])[:, None, None, None]
            at = np.broadcast_to(at, (len(frames), 1, 2, 2))
            return PoseTrack(("head", "neck"), at, np.ones(at.shape[:3], np.float32), 9, 9, fps)

    truth = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros((5, 9, 9, 3), np.uint8)
    seen = np.ones((5, 3), bool)
    seen[2] = False
    names, whole = ("neck", "tail", "head"), np.ones((5, 9, 9), bool)
    known = Known(truth[0], truth, truth, whole, None, np.zeros((5, 3, 2)), seen, names)
    pointing = Pointing(Brightness(), 3)
    assert pointing(truth, known, 10.0).values() == {"akd": 0, "mkr": 0, "pck": 1}
    moved = pointing(truth + 3, known, 10.0)
    assert moved.truth[:, 0, 0].tolist() == [0, 2, 4]
    assert moved.known.tolist() == [[True, False, True], [False] * 3, [True, False, True]]
    assert moved.values() == {"akd": pytest.approx(3 * 2**0.5), "mkr": 0, "pck": 0}
    assert looks == [(3, 6.0)] * 3
    assert pointing(truth, Known(truth[0], truth), 10.0) is None


# sets


def test_frechet_distance_has_its_closed_forms():
    x = np.random.default_rng(0).normal(size=(40, 3))
    assert distance.frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert distance.frechet(x, x + np.array([1, 2, 2])) == pytest.approx(9)
    line = np.linspace(-1, 1, 9)[:, None]  # the same shape, three times as wide
    spread = float(np.std(line, ddof=1))
    assert distance.frechet(line, 3 * line) == pytest.approx((2 * spread) ** 2)
    assert math.isnan(distance.frechet(x[:1], x))


def test_jackknife_takes_off_the_bias_of_few_clips():
    rng = np.random.default_rng(1)
    raw, freed = [], []
    for _ in range(30):
        a, b = rng.normal(size=(2, 12, 4))
        raw.append(distance.frechet(a, b))
        freed.append(distance.jackknife(a, b)[0])
    assert abs(np.mean(freed)) < 0.4 * np.mean(raw)  # the truth is 0
    assert distance.jackknife(a, a) == pytest.approx((0, 0), abs=1e-9)


def test_a_clip_s_vector_holds_what_is_shown_and_how_fast_it_changes():
    pooled = np.array([[0.0, 1], [2, 1], [0, 1]])
    assert distance.clip_vector(pooled).tolist() == [2 / 3, 1, 2, 0]
    vectors = np.random.default_rng(0).normal(size=(5, 40))
    assert distance.project(vectors).shape == (5, distance.DIMENSIONS)
    assert distance.project(vectors)[2:3] == pytest.approx(distance.project(vectors[2:3]))


# motion


def test_following_is_a_concordance_of_motion():
    grid = np.random.default_rng(0).normal(size=(8, 4, 4, 2))
    assert following.following(grid, grid) == pytest.approx(1)
    assert following.following(grid / 2, grid) == pytest.approx(0.8)
    assert following.following(-grid, grid) == pytest.approx(-1)
    assert following.following(0 * grid, grid) == 0
    assert math.isnan(following.following(grid, 0 * grid))
    with pytest.raises(ShapeError, match="motion grids"):
        following.following(grid[1:], grid)


@pytest.mark.parametrize("late", [-2, 0, 3])
def test_lag_finds_how_late_a_motion_is(late):
    smooth = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(40, 32)), (1, 9), 0, sigmaY=1.5)
    grid = smooth.reshape(40, 4, 4, 2)
    assert following.lag(grid[10 - late : 30 - late], grid[10:30]) == pytest.approx(
        abs(late), abs=0.3
    )
    assert math.isnan(following.lag(0 * grid, grid))


def test_motion_is_compared_in_the_subject_s_own_box():
    small = following.motion_grid(hopping(1, (20, 10), 24)[0])
    large = following.motion_grid(hopping(2, (4, 50), 36, where=3)[0])
    assert following.following(large, small) > 0.7  # another place, size, look and background
    still = hopping()[0][:1].repeat(FRAMES, 0)
    assert not following.motion_grid(still).any()


def test_a_camera_s_motion_and_brightness_are_no_motion():
    wide = texture(5, SIDE + 40)
    pan = np.stack([wide[10:, 2 * t :][:SIDE, :SIDE] for t in range(6)])
    shaken = following.motion_grid(pan)
    assert np.abs(shaken).mean() < 0.1 * 2 / SIDE
    clip = hopping()[0]
    flickers = damage("flicker", clip, 0.2, np.random.default_rng(0))
    assert following.following(*map(following.motion_grid, (flickers, clip))) > 0.8


# smoothness and consistency


def test_smoothness_is_what_neighbours_do_not_tell():
    grey = np.full((5, 32, 32, 3), 100, np.uint8)
    assert smoothness.motion_smoothness(grey) == 1
    grey[1::2] += 51  # a fifth of the range
    assert smoothness.motion_smoothness(grey) == pytest.approx(0.8)
    assert math.isnan(smoothness.motion_smoothness(grey[:2]))


def test_feature_consistency_is_vbench_s_mean_of_cosines():
    cells = np.zeros((3, 2, 1, 1), np.float32)
    cells[0, 0] = cells[1, 1] = cells[2, 0] = 1
    assert consistency.feature_consistency(cells) == pytest.approx((0 + 0 + 0 + 1) / 4)
    assert consistency.feature_consistency(cells[:1].repeat(4, 0)) == pytest.approx(1)
    assert math.isnan(consistency.feature_consistency(cells[:1]))


def test_feature_consistency_looks_where_the_weight_is():
    cells = np.ones((2, 2, 1, 2), np.float32)
    cells[1, :, 0, 1] = -1, 1  # the right cell changes
    weight = np.zeros((2, 4, 8))
    weight[..., :4] = 1
    assert consistency.feature_consistency(cells, weight) == pytest.approx(1)
    assert consistency.feature_consistency(cells, 1 - weight) == pytest.approx(0)


def test_warp_error_of_motion_is_small_and_of_a_step_of_brightness_that_step():
    wide = texture(0, SIDE + 20)
    pan = np.stack([wide[10:, 2 * t :][:SIDE, :SIDE] for t in range(4)])
    assert consistency.warp_error(pan, clip_flow(pan)) < 0.01
    flat = np.stack([np.full((32, 32, 3), v) for v in (0.2, 0.5)])
    assert consistency.warp_error(flat, np.zeros((1, 32, 32, 2))) == pytest.approx(0.3)


# appearance and drift


def test_parts_are_found_wherever_the_reference_has_them():
    cells = np.eye(4, dtype=np.float32).reshape(1, 4, 2, 2)
    moved = cells[0][:, ::-1, ::-1]
    weight = np.ones((1, 8, 8))
    assert appearance.appearance(cells, moved, weight) == pytest.approx(1)
    weight[:, :4, :4] = 0  # three parts, one of which the reference lacks
    lacking = moved.copy()
    lacking[3] = 0
    assert appearance.appearance(cells, lacking, weight) == pytest.approx(2 / 3)


def test_colours_are_compared_within_masks():
    red, blue = np.zeros((2, 1, 8, 8, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 200
    assert appearance.colour_likeness(red, red[0]) == pytest.approx(1)
    assert appearance.colour_likeness(red, blue[0]) == 0
    half = red.copy()
    half[:, :4] = blue[:, :4]
    assert appearance.colour_likeness(half, red[0]) == pytest.approx(math.sqrt(0.5))
    mask = np.zeros((1, 8, 8), bool)
    assert math.isnan(appearance.colour_likeness(half, red[0], mask))
    mask[:, 4:] = True
    assert appearance.colour_likeness(half, red[0], mask, mask[0]) == pytest.approx(1)


def test_drift_is_the_last_segment_against_the_first():
    values = np.arange(8.0)
    assert drift.by_segment(values).tolist() == [0.5, 2.5, 4.5, 6.5]
    assert drift.per_minute(drift.by_segment(values), 8 / 60) == pytest.approx(3600)
    assert drift.last_to_first(drift.by_segment(values)) == 13
    assert drift.identity_drift(1 - values / 10) == pytest.approx(0.6)
    with pytest.raises(ShapeError, match="want 4 or more"):
        drift.by_segment(values[:3])
    fades = np.linspace(0, 1, 4)[:, None, None, None] * np.ones((1, 8, 8, 3))
    path = drift.colour_path(fades)
    assert (path[0], path[-1]) == (0, pytest.approx(100, abs=0.01))  # black to white
    assert drift.colour_drift(fades) == path[-1]


def test_sharpness_drift_tells_wider_edges():
    clip = texture(0)[None].repeat(8, 0)
    assert drift.sharpness_drift(clip) == pytest.approx(0)
    clip[6:] = damages.blur(clip[6:], 2)
    assert drift.sharpness_drift(clip) > 1
    assert math.isnan(drift.sharpness_drift(np.zeros((8, 8, 8, 3), np.uint8)))


# pictures


@pytest.fixture(scope="module")
def faultless():
    return imaging.fit(np.stack([texture(seed, 128) for seed in range(8)]))


def test_naturalness_is_less_the_more_blur_or_noise(faultless):
    clean = np.stack([texture(seed, 128) for seed in range(20, 24)])
    base = imaging.naturalness(clean, faultless)
    rng = np.random.default_rng(0)
    blurred = [imaging.naturalness(damages.blur(clean, s), faultless) for s in (0.8, 1.3, 2)]
    noisy = [imaging.naturalness(damages.noise(clean, s, rng), faultless) for s in (12, 24, 48)]
    assert base < blurred[0] < blurred[1] < blurred[2]
    assert base < noisy[0] < noisy[1] < noisy[2]


def test_naturalness_is_unchanged_by_type_and_colour(faultless):
    clip = np.stack([texture(30, 128)])
    value = imaging.naturalness(clip, faultless)
    assert imaging.naturalness(clip / 255, faultless) == pytest.approx(value)
    grey = (clip @ np.array([0.299, 0.587, 0.114]) / 255)[..., None].repeat(3, -1)
    assert imaging.naturalness(grey, faultless) == pytest.approx(value)


def test_naturalness_of_nothing_and_of_too_little(faultless):
    assert math.isnan(imaging.naturalness(np.full((2, 64, 64, 3), 90, np.uint8), faultless))
    with pytest.raises(ShapeError, match="want 64"):
        imaging.naturalness(np.zeros((1, 63, 64, 3), np.uint8), faultless)
    shipped = imaging.pristine()
    assert shipped.mean.shape == (36,)
    assert (np.linalg.eigvalsh(shipped.covariance) > -1e-6).all()


# features


def test_features_are_of_unit_length_and_the_weight_of_what_moves(net):
    clip, mask = hopping()
    felt = features_of(clip, net, frames=3)
    assert felt.frames.tolist() == [0, 6, 11]
    assert np.square(felt.cells).sum(1) == pytest.approx(1, abs=1e-4)
    assert felt.pooled.shape == (3, 60)
    one = features_of(clip[6:7], net)  # unchanged by its company
    assert one.cells[0] == pytest.approx(felt.cells[1], abs=1e-5)
    weight = moving(damage("noise", clip, 12, np.random.default_rng(0)))  # of 96 pixels, as is
    assert weight[mask].mean() > 3 * weight[~mask].mean()
    assert cell_weights(weight, (6, 6)).sum((1, 2)) == pytest.approx(1)
    assert cell_weights(np.zeros((1, 4, 4)), (2, 2)).tolist() == [[[0.25] * 2] * 2]


# damages


def test_every_damage_of_no_strength_is_none_and_grows():
    clip, mask = hopping()
    other = damages.impostor(clip, mask, *hopping(who=7))
    for name, strengths in STRENGTHS.items():
        rng = (np.random.default_rng(0) for _ in range(9))
        assert np.array_equal(damage(name, clip, 0, next(rng), other), clip)
        away = [
            np.abs(damage(name, clip, s, next(rng), other).astype(float) - clip).mean()
            for s in strengths
        ]
        assert away == sorted(away), name
        assert away[0] > 0, name


def test_frames_and_joints_of_frozen_and_late_clips():
    assert damages.shown("frozen", 0.4, 6).tolist() == [0, 1, 2, 3, 3, 3]
    assert damages.shown("frozen", 1, 6).tolist() == [0] * 6
    assert damages.shown("time shift", 1.5, 4).tolist() == [1.5, 0.5, 0.5, 1.5]
    assert damages.shown("blur", 3, 3).tolist() == [0, 1, 2]
    places = np.arange(4.0)[:, None, None].repeat(2, -1)
    assert damages.joints_at(places, np.array([1.5, 3.0]))[:, 0, 0].tolist() == [1.5, 3]


def test_a_swap_leaves_the_first_quarter_and_the_background():
    clip, mask = hopping()
    other = damages.impostor(clip, mask, *hopping(who=7))
    swapped = damage("swapped", clip, 1, np.random.default_rng(0), other)
    assert np.array_equal(swapped[:3], clip[:3])
    assert np.array_equal(swapped[3:], other[3:])
    away = (swapped != clip).any(-1)
    assert not away[:, :, :25].any()


def test_damages_refuse_what_they_cannot_do():
    clip = hopping()[0]
    with pytest.raises(ConfigError, match="want one of blur, noise"):
        damage("rain", clip, 1, np.random.default_rng(0))
    with pytest.raises(ShapeError, match="the other identity is None"):
        damage("swapped", clip, 1, np.random.default_rng(0))


# together


def test_metrics_get_worse_with_the_damage_they_must_show(net):
    """Monotone on a tiny clip; those that ask a trained network are left to the real run."""
    clip, mask = hopping()
    driver = hopping(2, (24, 44), 30, where=3)[0]
    known = Known(texture(0), driver, clip, mask, clip_flow(clip))
    wanted = {
        "blur": ("psnr", "ssim", "sharpness_ratio"),
        "noise": ("psnr", "l1", "motion_smoothness", "warp_error", "colour_likeness"),
        "flicker": ("psnr", "motion_smoothness", "warp_error", "temporal_flicker"),
        "frozen": ("dynamic_degree", "following", "flow_epe"),
        "time shift": ("psnr", "following", "flow_epe", "lag"),
        "colour drift": ("psnr", "colour_drift", "colour_likeness"),
    }
    clean = measure_every(clip, known).values
    for name, metrics in wanted.items():
        last = dict(clean)
        for strength in STRENGTHS[name][2::2]:
            broken = damage(name, clip, strength, np.random.default_rng(0))
            values = measure_every(broken, known).values
            for m in metrics:
                worse, before = (
                    validation_report.worseness(BY_NAME[m], np.float64(v[m]), clean[m])
                    for v in (values, last)
                )
                assert worse > before, (name, m, strength)
            last = values


def test_with_a_network_every_metric_has_a_value_and_the_table_knows_its_module(net):
    clip, mask = hopping()
    places = np.zeros((FRAMES, 2, 2))
    seen = np.ones((FRAMES, 2), bool)
    known = Known(texture(0), clip, clip, mask, clip_flow(clip), places, seen)
    same = joints.Compared(places, places, seen, seen, known.sizes)
    got = measure_every(clip, known, net, 2, same)
    assert not [name for name, value in got.values.items() if math.isnan(value)]
    assert got.values.keys() | {"fad_v"} == BY_NAME.keys()
    assert got.vector.shape == (distance.DIMENSIONS,)
    assert (got.values["lpips"], got.values["akd"], got.values["pck"]) == (0, 0, 1)
    bare = measure_every(clip, Known(texture(0), clip)).values
    free = {m.name for m in METRICS if m.free and "network" not in m.needs}
    assert {name for name, value in bare.items() if not math.isnan(value)} == free


# agreement and the report


def test_spearman_is_of_ranks():
    assert spearman([1, 2, 3, 40], [1, 4, 9, 16]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, math.nan, 2, 3], [1, 99, 2, 3]) == pytest.approx(1)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    with pytest.raises(ShapeError, match="as many"):
        spearman([1, 2], [1])


def test_a_reaction_has_the_right_word():
    psnr, ratio = BY_NAME["psnr"], BY_NAME["sharpness_ratio"]
    spread = np.array([[0.0], [1.0], [2.0]])
    rising = np.arange(6.0)
    assert reaction(psnr, spread - rising).word == "worse"
    assert reaction(psnr, spread - rising).clips == 1
    assert reaction(psnr, spread + rising).word == "fooled"
    assert reaction(psnr, spread - np.array([0, 1, 2, 1, 3, 4.0])).word == "uneven"
    assert reaction(psnr, spread - 0.01 * rising).word == "blind"
    far = 2.0 ** np.array([[0, 0.5, -1, 1.5, -2, 3]])  # from 1 either way
    assert reaction(ratio, far).word == "worse"


def rows():
    """Of three cases: worse by the strength's number for everything, and two systems."""
    found = []
    for c in range(3):
        clips = [(CLEAN, 0.0, 0)]
        clips += [(n, float(s), k) for n, ss in STRENGTHS.items() for k, s in enumerate(ss, 1)]
        clips += [("good", 0.0, 1), ("middling", 0.0, 2), ("bad", 0.0, 3)]
        for name, strength, k in clips:
            values = {
                m.name: (c + k) * (1 if m.better == "down" else -1)
                for m in METRICS
                if m.name != "fad_v"
            }
            values["sharpness_ratio"] = 2.0**k
            vector = (np.arange(distance.DIMENSIONS) * c % 5 + k).tolist()
            found.append(Row(f"test/0/{c:04d}", name, strength, values, vector))
    return found


def test_the_report_counts_reactions_and_correlates(tmp_path):
    text = validation_report.report(rows(), "dreamactor bench metrics", "a machine", 0)
    wanted = sum(len(m.shows) for m in METRICS)
    assert f"{wanted} of {wanted} reactions" in text
    assert "Missed: none" in text
    assert "9 clips of 3 systems: good, middling, bad" in text
    following_row = next(k for k in text.splitlines() if k.startswith("| following ↑ | 1.00"))
    assert following_row.count("1.00 [1.00, 1.00]") == 3  # within each case
    validation_report.draw_plot(rows(), tmp_path / "plot.png", METRICS[:2])
    assert cv2.imread(str(tmp_path / "plot.png")) is not None


def test_a_run_goes_on_where_it_stopped_and_drops_a_torn_line(tmp_path, monkeypatch, net):
    asked = []

    class Bench:
        def __init__(self, source, config):
            pass

        def rows(self, index, done):
            asked.append((index, len(done)))
            yield from (r for r in rows() if r.case.endswith(str(index)) and r.key not in done)

    monkeypatch.setattr(validation, "_Bench", Bench)
    monkeypatch.setattr(Perceptual, "load", lambda *_: net)
    monkeypatch.setattr(validation_report, "draw_plot", lambda *_: None)  # has a test of its own
    cast = validation.Path("dreamactor/data/mini.castpack")
    run, config = tmp_path / "run", MetricsBenchConfig(count=3)
    report = validation.bench_metrics(cast, run, config)
    first = report.read_text()
    results = run / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:-2]) + lines[-2][:30])
    asked.clear()
    assert validation.bench_metrics(cast, run, config).read_text() == first
    assert asked == [(k, len(lines) - 2) for k in range(3)]
    assert sorted(results.read_text().splitlines()) == sorted(k.rstrip("\n") for k in lines)
    assert json.loads((run / "config.json").read_text())["damages"].keys() == STRENGTHS.keys()
    with pytest.raises(ConfigError, match="started with another seed"):
        validation.bench_metrics(cast, run, MetricsBenchConfig(count=3, seed=1))


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="count=2: want 3"):
        MetricsBenchConfig(count=2)
    with pytest.raises(ConfigError, match="no such estimator, nearest is keypoints"):
        MetricsBenchConfig(estimator="keypoint")
    with pytest.raises(ConfigError, match="joints=1: want 2"):
        MetricsBenchConfig(joints=1)
    with pytest.raises(ConfigError, match="is no folder of clips"):
        MetricsBenchConfig(clips=f"{tmp_path},{tmp_path / 'none'}")
    assert MetricsBenchConfig(clips=str(tmp_path)).command == f"clips={tmp_path.name}"
    assert validation.file_of(tmp_path, "test/0/0003").name == "test_0_0003.mp4"
