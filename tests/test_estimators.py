"""Estimators of others: order and place of their joints, who is who, what is said when they fail.

rtmlib and mediapipe are extras (`make extras`); what needs them is skipped without.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from onnx_standin import write_constant_model

from dreamactor.conditioning.pose import MediaPipe, RTMLib, checked, follow
from dreamactor.conditioning.skeleton import WHOLE, PoseTrack
from dreamactor.errors import ConfigError, ShapeError, WeightsError
from dreamactor.provenance import sha256

needs_rtmlib = pytest.mark.skipif(not importlib.util.find_spec("rtmlib"), reason="make extras")
needs_mediapipe = pytest.mark.skipif(
    not importlib.util.find_spec("mediapipe"), reason="make extras"
)
BOXES = ((20.0, 40.0, 92.0, 136.0), (120.0, 40.0, 192.0, 136.0))  # of the pose model's aspect


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that always sees two people, and a pose model that puts COCO's point k at
    (k, 100 + k) of its 192 x 256 crop."""
    folder = tmp_path_factory.mktemp("rtmlib")
    boxes = np.array([[(*box, 0.9) for box in BOXES]], np.float32)  # (1, 2, 5)
    write_constant_model(folder / "detector.onnx", (416, 416), [boxes * [2, 2, 2, 2, 1]])
    k = np.arange(133)
    x, y = np.zeros((1, 133, 384), np.float32), np.zeros((1, 133, 512), np.float32)
    x[0, k, 2 * k], y[0, k, 2 * (100 + k)] = 0.8, 0.8  # two bins a pixel
    write_constant_model(folder / "pose.onnx", (256, 192), [x, y])
    return folder


def _joint(track: PoseTrack, name: str, subject: int = 0) -> np.ndarray:
    return track.positions[0, subject, track.names.index(name)]


@needs_rtmlib
def test_joints_of_rtmlib_stand_where_its_model_says(standin: Path) -> None:
    """exact: COCO-WholeBody's order becomes ours; crop pixels become the picture's."""
    estimator = RTMLib(standin)
    files = ("detector.onnx", "pose.onnx")
    assert estimator.weights == {name: sha256(standin / name) for name in files}
    track = estimator(np.zeros((2, 208, 170, 3), np.uint8), 12.0)
    assert (track.names, track.confidence.shape) == (WHOLE, (2, 2, 128))
    numbers = {"nose": 0, "ear_l": 3, "shoulder_r": 6, "wrist_l": 9, "hip_r": 12, "ankle_l": 15}
    numbers |= {"face0": 23, "face67": 90, "palm_l": 91, "thumb4_l": 95, "palm_r": 112}
    for subject, (left, top, right, bottom) in enumerate(BOXES):
        centre, scale = (left + right) / 2, 1.25 * (right - left) / 192
        for name, k in numbers.items():
            at = (centre + scale * (k - 96), (top + bottom) / 2 + scale * (k - 28))
            assert_allclose(_joint(track, name, subject), np.add(at, 0.5), atol=0.02)
        neck = (_joint(track, "shoulder_l", subject) + _joint(track, "shoulder_r", subject)) / 2
        assert_allclose(_joint(track, "neck", subject), neck, atol=0.02)
    assert track.confidence[0, 0, 0] == pytest.approx(0.8)
    assert track.confidence[0, 1, WHOLE.index("little4_r")] == 0  # right of the picture


@needs_rtmlib
def test_nobody_is_nobody(standin: Path, tmp_path: Path) -> None:
    """exact: without a detection nothing is found, where rtmlib would take the whole picture."""
    (tmp_path / "pose.onnx").write_bytes((standin / "pose.onnx").read_bytes())
    write_constant_model(tmp_path / "detector.onnx", (416, 416), [np.zeros((1, 1, 5), np.float32)])
    track = RTMLib(tmp_path)(np.zeros((3, 64, 64, 3), np.uint8), 12.0)
    assert track.confidence.shape == (3, 1, 128)
    assert not track.confidence.any()


@needs_rtmlib
def test_weights_of_rtmlib_that_cannot_work_are_refused(standin: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"detector\.onnx: weights are missing; want"):
        RTMLib(tmp_path)
    (tmp_path / "detector.onnx").write_bytes((standin / "detector.onnx").read_bytes())
    (tmp_path / "pose.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match=r"pose\.onnx: cannot be fetched or loaded"):
        RTMLib(tmp_path)
    write_constant_model(tmp_path / "pose.onnx", (256, 192), [np.zeros((1, 17, 4), np.float32)] * 2)
    with pytest.raises(WeightsError, match=r"outputs of \[17, 17\] points, want 133"):
        RTMLib(tmp_path)


@pytest.mark.parametrize(
    ("module", "estimator", "extra"),
    [("rtmlib", RTMLib, "rtmlib"), ("mediapipe", MediaPipe, "mediapipe")],
)
def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, estimator: type, extra: str
) -> None:
    for name in (module, "mediapipe.python.solutions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'dreamactor\[{extra}\]'"):
        estimator()


@needs_mediapipe
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mediapipe_finds_an_astronaut() -> None:
    """golden: joints of a photograph, named by eye, within 5 % of its 512 pixels."""
    from skimage import data

    estimator = MediaPipe()
    assert {"pose_landmark_full.tflite", "face_landmark.tflite"} <= estimator.weights.keys()
    assert {len(digest) for digest in estimator.weights.values()} == {64}
    track = estimator(np.stack([data.astronaut()] * 2), 12.0)
    seen = {"nose": (222, 130), "shoulder_r": (108, 244), "shoulder_l": (306, 247)}
    seen |= {"eye_r": (205, 103), "ear_l": (270, 122), "face8": (221, 177), "face0": (180, 95)}
    for name, at in seen.items():
        assert_allclose(_joint(track, name), at, atol=0.05 * 512)
        assert track.confidence[0, 0, WHOLE.index(name)] > 0.9
    assert track.confidence[0, 0, WHOLE.index("ankle_l")] == 0  # below the picture


def test_everyone_keeps_a_place() -> None:
    """exact: two who walk past each other's number, one who leaves, one who comes."""
    body = np.array([[0, 0], [0, 60], [20, 30]], np.float32)
    sure = np.ones((1, 3), np.float32)

    def frame(*lefts: float) -> tuple[np.ndarray, np.ndarray]:
        shift = np.array([(x, 0) for x in lefts], np.float32)
        return body + shift[:, None], sure.repeat(len(lefts), 0)

    nobody = np.zeros((0, 3, 2), np.float32), np.zeros((0, 3), np.float32)
    found = [frame(10, 100), frame(104, 12), frame(14), nobody, frame(16, 108), frame(300, 18)]
    positions, confidence = follow(found)
    assert positions.shape == (6, 3, 3, 2)
    assert positions[:, 0, 0, 0].tolist() == [10, 12, 14, 14, 16, 18]
    assert positions[:, 1, 0, 0].tolist() == [100, 104, 104, 104, 108, 108]
    assert confidence[:, :, 0].T.tolist() == [
        [1, 1, 1, 0, 1, 1],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert positions[5, 2, 0, 0] == 300


def test_frames_of_another_kind_are_refused() -> None:
    good = np.zeros((2, 48, 64, 3), np.uint8)
    assert len(list(checked(good))) == len(list(checked(iter(good)))) == 2
    real, grey, other = np.zeros((1, 48, 64, 3)), good[..., 0], [good[0], good[0, 1:]]
    for bad, message in (
        (real, r"\(48, 64, 3\) float64: want \(48, 64\) x 3, uint8"),
        (grey, r"\(48, 64\) uint8: want \(48, 64\) x 3"),
        (other, r"\(47, 64, 3\) uint8: want \(48, 64\) x 3"),
        (good[:0], "no frames: want at least 1"),
    ):
        with pytest.raises(ShapeError, match=message):
            list(checked(bad))
