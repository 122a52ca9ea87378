"""The invisible mark: weak, the same everywhere, found after re-encoding, and only where it is."""

import cv2
import numpy as np
import pytest

from dreamactor import watermark
from dreamactor.errors import ConfigError
from dreamactor.image import resize
from dreamactor.video import iter_frames, write_clip
from dreamactor.watermark import CHANCE, GRID, Marker, code, pattern, read

IDENTITY = "3fa211ee"
SIZE = (192, 256)
KNOWN = [6027, 1188, 2611, 2979, 3347, 5400]
SIGNS, WORD = "-+++--+++-++--------+-++", "---+-++----+---++---+-++"


def film(count=10, size=SIZE, seed=0):
    """A smooth background, and something rough that moves over it."""
    rng = np.random.default_rng(seed)
    slope = (
        np.linspace(60, 180, size[1])[None, :, None] + np.linspace(0, 30, size[0])[:, None, None]
    )
    rough = resize(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8), (size[0] // 2, size[0] // 2))
    frames = []
    for k in range(count):
        frame = np.repeat(slope, 3, axis=2)
        top, left = size[0] // 4, 4 + 4 * k
        frame[top : top + rough.shape[0], left : left + rough.shape[1]] = rough
        frames.append(frame.round().astype(np.uint8))
    return frames


def marked(frames, identity=IDENTITY):
    marker = Marker(identity, frames[0].shape[:2])
    return [marker.mark(frame) for frame in frames]


def coded(path, frames, **settings):
    write_clip(path, frames, 24, **settings)
    return [frame for _, frame in iter_frames(path)]


def decibels(one, other):
    return 10 * np.log10(255**2 / np.mean((np.stack(one).astype(float) - np.stack(other)) ** 2))


# ---- the pattern ---------------------------------------------------------------------------------


def test_golden_signs():
    """Other signs than these read nothing of what was marked before; VERSION must tell them."""
    found = code()
    assert watermark.VERSION == 1
    assert found.known[:6].tolist() == KNOWN
    assert "".join("+" if sign > 0 else "-" for sign in found.signs[:24]) == SIGNS
    words = "".join("+" if sign > 0 else "-" for sign in found.words[5, 255, :24])
    assert words == WORD


def test_exact_every_coefficient_has_one_meaning():
    found = code()
    places = [*found.known.tolist(), *found.places.ravel().tolist()]
    assert len(places) == len(set(places))
    plane = pattern(IDENTITY)
    assert plane.shape == (GRID, GRID)
    assert abs(plane.mean()) < 1e-6
    assert plane.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("identity", ["", "3fa211", "3fa211ee00", "3fa211eg", "zz", "3fa211éé"])
def test_refuses_other_identities(identity):
    with pytest.raises(ConfigError, match="want 8 hex digits"):
        Marker(identity, SIZE)


# ---- putting it in -------------------------------------------------------------------------------


def test_is_weak_and_weaker_where_the_picture_is_smooth():
    frames = film()
    after = marked(frames)
    assert decibels(frames, after) > 42
    smooth = np.abs(after[0][:20].astype(int) - frames[0][:20])
    assert smooth.max() <= 3
    assert smooth.mean() < 0.6


def test_noise_alone_is_marked_by_no_more_than_promised():
    noise = [np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)]
    assert decibels(noise, marked(noise)) > 42


def test_unchanged_by_what_was_marked_before():
    frames = film(3)
    before = [frame.copy() for frame in frames]
    marker = Marker(IDENTITY, SIZE)
    first, _, again = marker.mark(frames[0]), marker.mark(frames[1]), marker.mark(frames[0])
    assert np.array_equal(first, again)
    assert np.array_equal(first, Marker(IDENTITY, SIZE).mark(frames[0]))
    assert not np.array_equal(first, frames[0])
    assert all(np.array_equal(a, b) for a, b in zip(before, frames, strict=True))


@pytest.mark.parametrize("size", [(2, 2), (2, 64), (64, 42), (600, 500)])
def test_any_size_can_be_marked_and_read(size):
    frame = np.full((*size, 3), 90, np.uint8)
    after = Marker(IDENTITY, size).mark(frame)
    assert after.shape == frame.shape
    assert read([after]).frames == 1


def test_nothing_beside_the_roughest_is_no_nan():
    """exact: sums that run over steep edges end a little below 0 on the black behind them."""
    frame = np.zeros((360, 640, 3), np.uint8)
    frame[:150] = np.random.default_rng(1).integers(0, 256, (360, 640, 1))[:150]
    light = frame[..., 0].astype(np.float32)
    rough = watermark._rough(light, (21, 21))
    assert (cv2.blur(rough * rough, (21, 21)) < 0).any(), "else this tests nothing"
    marker = Marker(IDENTITY, frame.shape[:2])
    assert np.isfinite(marker._strength(light)).all()
    assert np.abs(marker.mark(frame).astype(int) - frame).max() < 20
    assert np.isfinite(read([frame]).score)


# ---- finding it ----------------------------------------------------------------------------------


def test_reads_the_identity():
    for identity in ("00000000", "ffffffff", IDENTITY):
        found = read(marked(film(), identity))
        assert (found.there, found.identity) == (True, identity)
        assert (found.frames, found.mirrored, found.seen) == (10, False, (1, 1))


@pytest.mark.parametrize(
    ("suffix", "crf"), [(".mp4", None), (".mp4", 25), (".webm", None), (".gif", None)]
)
def test_survives_what_is_written(tmp_path, suffix, crf):
    frames = coded(tmp_path / f"clip{suffix}", marked(film()), crf=crf)
    assert read(frames).identity == IDENTITY


def half(frames):
    return [resize(frame, (SIZE[0] // 2, SIZE[1] // 2)) for frame in frames]


def larger(frames):
    return [resize(frame, (SIZE[0] * 3 // 2, SIZE[1] * 3 // 2)) for frame in frames]


def crop(frames):
    return [frame[8:-6, 10:-10].copy() for frame in frames]


CHANGES = {
    "half": half,
    "larger": larger,
    "crop": crop,
    "crop, larger": lambda frames: larger(crop(frames)),
    "bent": lambda frames: [resize(frame, (250, 200)) for frame in frames],
    "brighter": lambda frames: [np.clip(f * 1.2 + 15, 0, 255).astype(np.uint8) for f in frames],
    "every third": lambda frames: frames[::3],
    "mirrored": lambda frames: [frame[:, ::-1].copy() for frame in frames],
}


@pytest.mark.parametrize("name", CHANGES)
def test_survives_changes_and_h264(tmp_path, name):
    found = read(coded(tmp_path / "clip.mp4", CHANGES[name](marked(film())), crf=20))
    assert (found.there, found.identity, found.mirrored) == (True, IDENTITY, name == "mirrored")
    if name.startswith("crop"):
        assert found.seen == pytest.approx((178 / 192, 236 / 256), abs=0.02)
    else:
        assert found.seen == (1, 1)


@pytest.mark.parametrize("seed", range(4))
def test_is_not_found_where_it_is_not(seed):
    frames = film(4, seed=seed)
    if seed == 1:
        frames = [np.zeros((*SIZE, 3), np.uint8)]
    elif seed == 2:
        frames = [np.random.default_rng(2).integers(0, 256, (*SIZE, 3), dtype=np.uint8)]
    found = read(frames)
    assert not found.there
    assert found.chance > CHANCE * 100
    assert found.identity is None


def test_direct_scores_of_frames_without_it_are_as_of_chance():
    """exact: mean 0 and deviation 1 over unrelated pictures, on which the bound rests."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(60):
        rough = resize(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8), SIZE)
        total = watermark._evidence(rough)
        plane = watermark._stretch(total, (GRID, GRID))
        scores.append(watermark._look(plane, 1, 1, False).score)
    assert abs(np.mean(scores)) < 0.5
    assert 0.7 < np.std(scores) < 1.35


def test_another_checksum_is_no_identity(monkeypatch):
    frames = marked(film())
    monkeypatch.setattr(watermark, "_checksum", lambda data: b"\0\0")
    found = read(frames)
    assert (found.there, found.identity) == (True, None)


def test_nothing_to_read():
    assert read([]) == watermark.Found(0.0, 1.0, None, 0)


def test_reads_no_more_frames_than_it_needs(monkeypatch):
    monkeypatch.setattr(watermark, "MOST_FRAMES", 3)
    frames = iter(marked(film(6)))
    assert read(frames).frames == 3
    assert len(list(frames)) == 3
