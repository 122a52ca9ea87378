"""Reading clips: what a file holds (`probe`) and its frames one by one (`iter_frames`).

Legend: H, W pixels as displayed. A frame is (H, W, 3) uint8, sRGB values. Time is in seconds
from the first displayed frame.

Rules, the same for every file:
  - Pixels are what a player shows: rotation and mirroring of the display matrix applied,
    non-square pixels made square by enlarging the shorter axis, limited range stretched to
    0..255. A stream that does not say its matrix is BT.709 from 1280 x 577 on, else BT.601.
    HDR (PQ, HLG) is not tone mapped; `ClipInfo.hdr` tells.
  - Presentation times count, not a frame rate. A frame without a time, or one not after its
    predecessor, comes one mean interval after it. Avi has decoding times only.
  - A file shorter than its own header says is truncated and refused, before any decoding. So
    is one whose packets end before the length it claims by more than half a second, 2 % and
    two frames; recordings that claim nothing pass.
  - A packet or frame that cannot be decoded is an error. Frames that vanish without an error
    are one when more than two and more than 2 % do (a stream cut out of a longer one loses
    some at its start).
  - Only the demuxers of `CONTAINERS` are reachable, so no playlist or reference inside a file
    makes another file open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from dreamactor.containers import declared_size
from dreamactor.errors import MediaError
from dreamactor.image import FAULTS, Rgb, check_input, flatten, open_image

MAX_CLIP_PIXELS = 8192 * 4320  # one 8K frame, 106 MB as RGB
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
ANIMATED = ("gif", "webp", "png")  # by Pillow: FFmpeg does not read animated webp
WANTED = "mp4, mov, mkv, webm, avi, gif or animated webp"
SWS = int(
    Interpolation.BICUBIC
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)  # without these swscale darkens by up to 2 of 255 and depends on the CPU
BT709, BT601, UNSPECIFIED = 1, 5, 2  # AVColorSpace
HDR_CURVES = (16, 18)  # AVColorTransferCharacteristic: PQ, HLG
FULL_RANGE = 2  # AVColorRange


@dataclass(frozen=True)
class ClipInfo:
    """What a clip holds, found by reading all of its packets and decoding one frame."""

    width: int
    """Pixels as displayed: upright, square pixels."""
    height: int
    """Pixels as displayed."""
    fps: Fraction
    """Mean frames per second; as in the header where that is right to 0.5 %, and in an avi's also
    where no more than two or 2 % of the frames it has room for are missing."""
    frames: int
    """Pictures to be shown, at least 2."""
    duration: float
    """Seconds from the first frame to the end of the last."""
    start: float
    """Seconds on the clock of the container, which the sound shares, at the first frame."""
    has_audio: bool
    """Whether there is a sound track."""
    container: str
    """Name of the demuxer: "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "gif", "webp", ..."""
    codec: str
    """Name of the picture codec: "h264", "vp9", ..."""
    hdr: bool
    """PQ or HLG, so colours look flat here."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), as shapes are."""
        return self.height, self.width


def probe(path: str | Path) -> ClipInfo:
    """Read what a clip holds and refuse what cannot animate anything.

    All packets are read (not decoded), so that lengths are true and a truncated file is found
    before an hour of work; memory does not grow with the length.

    Args:
        path: mp4, mov, mkv, webm, avi, gif or animated webp/png, told by content.

    Returns:
        The clip's facts.

    Raises:
        MediaError: Missing, a folder, empty, not a video, without a picture track, fewer than
            two frames, truncated, encrypted, in a codec that is not built in, undecodable, or
            above `MAX_CLIP_PIXELS`.
    """
    path = check_input(path)
    with path.open("rb") as file:
        head = file.read(16)
        declared = declared_size(file)
    actual = path.stat().st_size
    if declared > actual:
        raise MediaError(
            f"{path}: truncated: {actual} of {declared} bytes are there; copy it again"
        )
    return _probe_animation(path) if _is_picture(head) else _probe_video(path)


def iter_frames(path: str | Path) -> Iterator[tuple[float, Rgb]]:
    """Decode a clip, one frame in memory at a time.

    Args:
        path: As `probe`, which is asked first: its errors come from this call, not later.

    Returns:
        Iterator of (seconds since the first frame, (H, W, 3) uint8); all frames have the
        size of `ClipInfo`, and every array is the caller's to keep.

    Raises:
        MediaError: As `probe`; while iterating, when a frame cannot be decoded or when fewer
            frames come out than the file holds.
    """
    clip = probe(path)
    if clip.container in ANIMATED:
        return _iter_animation(Path(path), clip)
    return _iter_video(Path(path), clip)


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """Open a container of `CONTAINERS`; what FFmpeg raises inside becomes one MediaError line."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        # "file:" keeps FFmpeg from reading a protocol into a name such as "concat:a.mp4"
        container = av.open(f"file:{path}", container_options=options)
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"{path}: not a video, or its head is damaged; want {WANTED}") from error
    with container:
        try:
            yield container
        except av.error.DecoderNotFoundError as error:
            raise MediaError(f"{path}: no decoder for its codec; convert it to H.264") from error
        except av.error.FFmpegError as error:
            reason = f"{path}: truncated or damaged, cannot be decoded: {error.strerror}"
            raise MediaError(reason) from error


def _picture_track(path: Path, container: InputContainer) -> VideoStream:
    still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    tracks = [s for s in container.streams.video if not s.disposition & still]
    if not tracks:
        kinds = ", ".join(sorted({stream.type for stream in container.streams}))
        raise MediaError(f"{path}: no video stream" + (f", only {kinds}" if kinds else ""))
    track = tracks[0]
    if track.codec_context is None:
        raise MediaError(f"{path}: its video codec is unknown or encrypted; convert it to H.264")
    if not track.codec_context.width:
        raise MediaError(f"{path}: no usable frame size in it; damaged, or above 8192 x 4320")
    _check_size(path, track.codec_context.height, track.codec_context.width)
    track.thread_type = "AUTO"
    track.codec_context.options = {"err_detect": "explode", "max_pixels": str(MAX_CLIP_PIXELS)}
    return track


def _check_size(path: Path, height: int, width: int) -> None:
    if height * width > MAX_CLIP_PIXELS:
        raise MediaError(
            f"{path}: frames of {width} x {height}, the limit is 8192 x 4320; scale it down first"
        )


@dataclass
class _Span:
    """Where packets lie on the clock of the container, in seconds."""

    count: int = 0
    begin: float = np.inf
    last: float = -np.inf
    end: float = -np.inf

    def add(self, packet: "av.Packet[Any]", time: float | None) -> None:
        self.count += 1
        if time is not None:
            self.begin, self.last = min(self.begin, time), max(self.last, time)
            self.end = max(self.end, time + float((packet.duration or 0) * packet.time_base))

    @property
    def reach(self) -> float:
        return max(self.end, self.end - self.begin)


def _probe_video(path: Path) -> ClipInfo:
    shown, everything = _Span(), _Span()
    with open_video(path) as container:
        track = _picture_track(path, container)
        frames: list[VideoFrame] = []
        for packet in container.demux():
            ours = packet.stream_index == track.index
            if ours and packet.has_sidedata("encryption_info"):
                raise MediaError(f"{path}: is encrypted; want a file without copy protection")
            if ours and not frames:
                frames = track.decode(packet)
            if packet.size == 0:
                continue  # marks the end of a stream
            if packet.is_corrupt:
                raise MediaError(f"{path}: truncated or damaged near {everything.last:.2f} s")
            time = _time(container, packet)
            everything.add(packet, time)
            if ours and not packet.is_discard:
                shown.add(packet, time)
        _want_two(path, shown.count)
        if not np.isfinite(shown.begin):
            raise MediaError(f"{path}: its frames have no times; convert it to mp4")
        if not frames:
            raise MediaError(f"{path}: not one of {shown.count} frames can be decoded")
        fps = _mean_rate(container, track, shown)
        end = shown.end if shown.end > shown.last else shown.last + float(1 / fps)
        _check_claim(path, container, track, shown if track.duration else everything, fps)
        height, width = _displayed(track, frames[0])
        _check_size(path, height, width)
        return ClipInfo(
            width=width,
            height=height,
            fps=fps,
            frames=shown.count,
            duration=end - shown.begin,
            start=shown.begin,
            has_audio=bool(container.streams.audio),
            container=container.format.name,
            codec=track.codec_context.name,
            hdr=frames[0].color_trc in HDR_CURVES,
        )


def _time(container: InputContainer, item: "av.Packet[Any] | VideoFrame") -> float | None:
    """Seconds on the clock of the container.

    An avi stores none, and the pts that FFmpeg derives are in the order of decoding: there the
    dts count, which lag by a constant.
    """
    stamp = item.pts
    if stamp is None or container.format.name == "avi":
        stamp = item.dts
    return None if stamp is None or not item.time_base else float(stamp * item.time_base)


def _want_two(path: Path, frames: int) -> None:
    if frames < 2:
        plural = "" if frames == 1 else "s"
        raise MediaError(f"{path}: has {frames} frame{plural}; want at least 2")


def _mean_rate(container: InputContainer, track: VideoStream, shown: _Span) -> Fraction:
    seconds = shown.last - shown.begin
    if seconds <= 0:  # all at once
        return track.average_rate or track.guessed_rate or Fraction(25)
    measured = (shown.count - 1) / seconds
    for rate in (track.average_rate, track.guessed_rate):
        if rate and abs(rate / measured - 1) < 0.005:
            return rate
    if 0 < shown.end - shown.last <= seconds:  # else nobody knows how long the last one is shown
        measured = shown.count / (shown.end - shown.begin)
    rate = track.average_rate
    if rate and container.format.name == "avi":  # encoders leave some of its even slots free
        free = round(shown.count * rate / measured) - shown.count
        if 0 < free <= max(2, 0.02 * shown.count):
            return rate
    return Fraction(measured).limit_denominator(1001)


def _check_claim(
    path: Path, container: InputContainer, track: VideoStream, seen: _Span, fps: Fraction
) -> None:
    claim = (container.duration or 0) / av.time_base
    if track.duration and track.time_base:
        claim = float(track.duration * track.time_base)
    if claim - seen.reach > max(0.5, 0.02 * claim, float(2 / fps)):
        raise MediaError(
            f"{path}: truncated or damaged: claims {claim:.2f} s, holds {seen.reach:.2f} s"
        )


def _iter_video(path: Path, clip: ClipInfo) -> Iterator[tuple[float, Rgb]]:
    reformatter = VideoReformatter()
    interval = float(1 / clip.fps)
    count, start, time = 0, 0.0, -interval
    with open_video(path) as container:
        track = _picture_track(path, container)
        for frame in container.decode(track):
            if frame.is_corrupt:
                raise MediaError(f"{path}: frame {count} is damaged")
            stamp = _time(container, frame)
            if count == 0 and stamp is not None:
                start = stamp
            later = stamp is not None and stamp - start > time
            time = stamp - start if stamp is not None and later else time + interval
            yield time, _to_rgb(frame, clip.size, reformatter)
            count += 1
    if clip.frames - count > max(2, 0.02 * clip.frames):
        raise MediaError(f"{path}: damaged: {count} of {clip.frames} frames could be decoded")


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then mirror left-right, then mirror top-bottom) of the display matrix."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # x' = a x + c y, y' = b x + d y; rotations by other than quarter turns are rounded to them
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _displayed(track: VideoStream, frame: VideoFrame) -> tuple[int, int]:
    """(height, width) after square pixels and rotation."""
    height, width = frame.height, frame.width
    aspect = track.sample_aspect_ratio or Fraction(1)
    if aspect > 1:
        width = round(width * aspect)
    elif aspect > 0:
        height = round(height / aspect)
    return (width, height) if _orientation(frame)[0] else (height, width)


def _to_rgb(frame: VideoFrame, size: tuple[int, int], reformatter: VideoReformatter) -> Rgb:
    if frame.colorspace == UNSPECIFIED:
        wide = frame.width >= 1280 or frame.height > 576  # the rule of mpv
        frame.colorspace = BT709 if wide else BT601
    transpose, mirror, flip = _orientation(frame)
    height, width = size[::-1] if transpose else size
    rgb = reformatter.reformat(
        frame, width, height, "rgb24", interpolation=SWS, dst_color_range=FULL_RANGE
    )
    image = np.asarray(rgb.to_ndarray(), np.uint8)  # (height, width, 3) as stored
    if transpose:
        image = image.swapaxes(0, 1)
    image = image[:: -1 if flip else 1, :: -1 if mirror else 1]
    return np.ascontiguousarray(image)  # (H, W, 3)


def _is_picture(head: bytes) -> bool:
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return webp or head.startswith(
        (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
    )


def _delay(image: Image.Image) -> float:
    """Milliseconds the current frame is shown; below 20 browsers and FFmpeg take 100."""
    milliseconds = float(image.info.get("duration") or 0)
    return 100.0 if milliseconds < 20 else milliseconds


def _probe_animation(path: Path) -> ClipInfo:
    with open_image(path) as image:
        _check_size(path, image.height, image.width)
        kind = str(image.format).lower()
        # pages of a tiff and the previews inside a jpeg are no frames
        frames = int(getattr(image, "n_frames", 1)) if kind in ANIMATED else 1
        _want_two(path, frames)
        shown = 0.0
        try:
            for index in range(frames):
                image.seek(index)
                image.load()
                shown += _delay(image)
        except FAULTS as error:
            raise MediaError(f"{path}: truncated or damaged at frame {index}: {error}") from error
        return ClipInfo(
            width=image.width,
            height=image.height,
            fps=Fraction(1000 * frames / shown).limit_denominator(1001),
            frames=frames,
            duration=shown / 1000,
            start=0.0,
            has_audio=False,
            container=kind,
            codec=kind,
            hdr=False,
        )


def _iter_animation(path: Path, clip: ClipInfo) -> Iterator[tuple[float, Rgb]]:
    shown = 0.0
    with open_image(path) as image:
        for index in range(clip.frames):
            try:
                image.seek(index)
                frame, delay = flatten(image), _delay(image)
            except FAULTS as error:
                raise MediaError(f"{path}: frame {index} is damaged: {error}") from error
            yield shown / 1000, frame
            shown += delay
