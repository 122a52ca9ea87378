"""Pose estimators behind one protocol: a clip's frames in, a PoseTrack out.

    world       exact, for the world's own clips            world.tracks.Exact
    keypoints   humans and animals, one subject, embedded   backbones.keypoints
    mediapipe   one real person with hands and face         here, extra `mediapipe`
    rtmlib      several people with hands and faces         here, extra `rtmlib`

Legend: T frames of H x W pixels, S subjects, J joints, N subjects of one frame.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dreamactor.conditioning.skeleton import BODY, SEEN, WHOLE, Array, PoseTrack
from dreamactor.errors import ConfigError, ShapeError, WeightsError
from dreamactor.image import Rgb
from dreamactor.provenance import sha256

MESH = (  # of mediapipe's face mesh, the points nearest to iBUG's 68
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),  # brows
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),  # nose
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # lips, outer
    *(78, 82, 13, 312, 308, 317, 14, 87),  # lips, inner
)
JUMP = 0.5
"""Distance between frames, in parts of a person's size, beyond which it is another person."""


class PoseEstimator(Protocol):
    """Finds the joints of everyone in a clip."""

    @property
    def name(self) -> str:
        """As `backbones.load.load_estimator` names it."""
        ...

    @property
    def weights(self) -> Mapping[str, str]:
        """File name -> sha256 of every weight file in use."""
        ...

    def __call__(self, frames: Iterable[Rgb], fps: float) -> PoseTrack:
        """Joints on every frame.

        Args:
            frames: T pictures (H, W, 3) uint8, sRGB, of one size: an array, or anything that
                begins anew whenever it is gone through, which may happen more than once.
            fps: Frames a second.
        """
        ...


def identity(estimator: PoseEstimator) -> dict[str, Any]:
    """Which weights find the joints, for JSON."""
    return {"name": estimator.name, "weights": dict(estimator.weights)}


def checked(frames: Iterable[Rgb]) -> Iterator[Rgb]:
    """The frames of a clip, one by one.

    Raises:
        ShapeError: One is not (H, W, 3) uint8 or of another size than the first, or none is there.
    """
    first = None
    for frame in frames:
        first = frame.shape if first is None else first
        if frame.shape != first or first[2:] != (3,) or frame.dtype != np.uint8:
            raise ShapeError(f"frame {frame.shape} {frame.dtype}: want {first[:2]} x 3, uint8")
        yield frame
    if first is None:
        raise ShapeError("a clip of no frames: want at least 1")


class MediaPipe:
    """Google's holistic model for one real person: body, hands and face, weights in the package.

    Raises:
        ConfigError: mediapipe, or the version of it that brings models, is not installed.
    """

    name = "mediapipe"

    def __init__(self) -> None:
        try:
            from mediapipe.python.solutions import holistic
        except ImportError as error:
            raise ConfigError(
                "pose=mediapipe: mediapipe 0.10.21 is not installed; "
                "`pip install 'dreamactor[mediapipe]'` brings it (Python 3.12 or older)"
            ) from error
        self._holistic = holistic
        models = Path(holistic.__file__).parents[2] / "modules"
        self.weights = _hashes(models.glob("*/*.tflite"))
        self._numbers = {n: holistic.PoseLandmark[_upper(n)].value for n in BODY if n != "neck"}

    def __call__(self, frames: Iterable[Rgb], fps: float) -> PoseTrack:
        """Joints of WHOLE of one person, followed from frame to frame."""
        positions, confidence = [], []
        with self._holistic.Holistic(model_complexity=1) as model:
            for frame in checked(frames):
                height, width = frame.shape[:2]
                at, sure = _whole(model.process(np.ascontiguousarray(frame)), self._numbers)
                inside = ((at >= 0) & (at <= 1)).all(axis=-1)
                positions.append(at * np.array([width, height], np.float32))
                confidence.append(sure * inside)
        one = np.stack(positions)[:, None], np.stack(confidence)[:, None]
        return PoseTrack(WHOLE, *one, height, width, fps)


def _whole(found: Any, numbers: dict[str, int]) -> tuple[Array, Array]:
    """(128, 2) places of WHOLE in parts of the picture, (128,) confidence.

    Args:
        found: Result of mediapipe's holistic model.
        numbers: Of its body landmarks, by joint; the neck is between the shoulders.
    """
    at, sure = np.zeros((len(WHOLE), 2), np.float32), np.zeros(len(WHOLE), np.float32)
    parts = (
        (found.face_landmarks, "face0", MESH),
        (found.left_hand_landmarks, "palm_l", range(21)),
        (found.right_hand_landmarks, "palm_r", range(21)),
    )
    for landmarks, name, which in parts:
        if landmarks is not None:
            first = WHOLE.index(name)
            points = [landmarks.landmark[n] for n in which]
            at[first : first + len(points)] = [(p.x, p.y) for p in points]
            sure[first : first + len(points)] = 1
    if found.pose_landmarks is not None:
        for name, number in numbers.items():
            point = found.pose_landmarks.landmark[number]
            at[BODY.index(name)] = point.x, point.y
            sure[BODY.index(name)] = point.visibility
        shoulders = [BODY.index(f"shoulder_{side}") for side in "lr"]
        neck = BODY.index("neck")
        at[neck], sure[neck] = at[shoulders].mean(axis=0), sure[shoulders].min()
    return at, sure


def _upper(joint: str) -> str:
    """The name that mediapipe has for a joint: RIGHT_KNEE for knee_r."""
    part, _, side = joint.partition("_")
    return {"l": "LEFT_", "r": "RIGHT_", "": ""}[side] + part.upper()


class RTMLib:
    """DWPose's models through rtmlib: a detector of people, and 133 points of each.

    Args:
        weights: Folder with detector.onnx (YOLOX) and pose.onnx (RTMPose, RTMW or DWPose of 133
            points). None lets rtmlib fetch its balanced ones from its hub, once.
        device: "cpu", or "cuda" with onnxruntime-gpu.

    Raises:
        ConfigError: rtmlib is not installed.
        WeightsError: A file is missing, cannot be fetched, or holds another model.
    """

    name = "rtmlib"

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        try:
            from rtmlib import YOLOX, RTMPose, Wholebody
        except ImportError as error:
            raise ConfigError(
                "pose=rtmlib: rtmlib is not installed; `pip install 'dreamactor[rtmlib]'` brings it"
            ) from error
        known = Wholebody.MODE["balanced"]
        detector, pose = str(known["det"]), str(known["pose"])
        if weights is not None:
            detector, pose = (str(_there(weights / f"{n}.onnx")) for n in ("detector", "pose"))
        self._detector = _loaded(YOLOX, detector, device)
        self._detector.model_input_size = _input_size(self._detector, known["det_input_size"])
        self._pose = _loaded(RTMPose, pose, device, to_openpose=True)
        high_wide = _input_size(self._pose, known["pose_input_size"][::-1])
        self._pose.model_input_size = high_wide[::-1]  # rtmlib has both orders
        points = [output.shape[1] for output in self._pose.session.get_outputs()]
        if points != [133, 133]:
            raise WeightsError(f"{pose}: outputs of {points} points, want 133 along x and along y")
        tools = self._detector, self._pose  # of what was fetched they name the place
        self.weights = _hashes(Path(tool.onnx_model) for tool in tools)

    def __call__(self, frames: Iterable[Rgb], fps: float) -> PoseTrack:
        """Joints of WHOLE of everyone, each followed from frame to frame."""
        found: list[tuple[Array, Array]] = []
        for frame in checked(frames):
            height, width = frame.shape[:2]
            bgr = np.ascontiguousarray(frame[..., ::-1])
            boxes = self._detector(bgr)
            if not len(boxes):  # RTMPose would take the whole picture for a person
                found.append((np.zeros((0, 128, 2), np.float32), np.zeros((0, 128), np.float32)))
                continue
            at, sure = self._pose(bgr, boxes)  # (N, 134, 2) 18 of the body, 6 of feet, the rest
            keep = [*range(18), *range(24, 134)]
            at, sure = at[:, keep] + 0.5, np.clip(sure[:, keep], 0, 1)
            inside = ((at >= 0) & (at <= (width, height))).all(axis=-1)
            found.append((at.astype(np.float32), (sure * inside).astype(np.float32)))
        positions, confidence = follow(found)
        return PoseTrack(WHOLE, positions, confidence, height, width, fps)


def _hashes(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(paths)}


def _there(path: Path) -> Path:
    if not path.is_file():
        raise WeightsError(f"{path}: weights are missing; want detector.onnx and pose.onnx there")
    return path


def _loaded(model: Any, path: str, device: str, **options: Any) -> Any:
    """A model of rtmlib, without its talk on stdout."""
    try:
        with redirect_stdout(io.StringIO()):
            return model(path, backend="onnxruntime", device=device, **options)
    except Exception as error:  # onnxruntime's faults share no base but this
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: cannot be fetched or loaded: {first}") from error


def _input_size(tool: Any, usual: Sequence[int]) -> tuple[int, int]:
    """(height, width) that a model's file says, or the usual one if it leaves that open."""
    sides = tool.session.get_inputs()[0].shape[2:]
    height, width = (s if isinstance(s, int) else u for s, u in zip(sides, usual, strict=True))
    return height, width


def follow(found: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Give everyone the same place in every frame, nearest first.

    Args:
        found: Of each frame (N, J, 2) positions and (N, J) confidence, in any order.

    Returns:
        (T, S, J, 2) and (T, S, J), subjects in the order in which they come; S is 1 or more, and
        where one is not found its confidence is 0 and it stands where it was.
    """
    joints = next((at.shape[1] for at, _ in found), 0)
    last: list[Array] = []  # where each was last, (J, 2)
    places: list[dict[int, int]] = []  # subject -> its number in this frame
    for at, sure in found:
        distances = sorted(
            (_apart(at[n], last[s], sure[n]), s, n)
            for s in range(len(last))
            for n in range(len(at))
        )
        place: dict[int, int] = {}
        for distance, s, n in distances:
            if distance < JUMP and s not in place and n not in place.values():
                place[s] = n
        for n in sorted(set(range(len(at))) - set(place.values())):
            place[len(last)] = n
            last.append(at[n])
        for s, n in place.items():
            last[s] = at[n]
        places.append(place)
    shape = (len(found), max(1, len(last)), joints)
    positions, confidence = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    for t, place in enumerate(places):
        positions[t] = positions[max(t - 1, 0)]
        for s, n in place.items():
            positions[t, s], confidence[t, s] = found[t][0][n], found[t][1][n]
    return positions, confidence


def _apart(a: Array, b: Array, sure: Array) -> float:
    """Mean distance of two poses' joints in parts of the first one's size, where it is sure."""
    trusted = sure >= SEEN
    if not trusted.any():
        return float("inf")
    size = max(1.0, float(np.ptp(a[trusted], axis=0).max()))
    return float(np.linalg.norm(a[trusted] - b[trusted], axis=-1).mean()) / size
