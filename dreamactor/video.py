"""Clips: read them, change their frame rate, write them.

Legend: H, W pixels. A frame is (H, W, 3) uint8, sRGB values; a size is (height, width). Time is
in seconds from the first frame. Reading is explained in `decode.py`, sound in `sound.py`.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import OutputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from dreamactor.decode import BT709, SWS, ClipInfo, iter_frames, open_video, probe
from dreamactor.errors import ConfigError, MediaError, ShapeError
from dreamactor.image import Rgb, atomic, check_output
from dreamactor.sound import TimedPacket, carry_sound

__all__ = [
    "CLIP_SUFFIXES",
    "ClipInfo",
    "ClipWriter",
    "iter_frames",
    "probe",
    "resample",
    "write_clip",
]

CLIP_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".gif")
FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".gif": "gif"}
THREADS = "4"  # not the machine's: x264 and libvpx write other bytes for another number
# x264's mbtree differs from run to run on AVX-512 (seen with FFmpeg 8.1.2); without it the bytes
# are the same there, on AVX2 and in plain C, for files about 30 % larger at the same crf.
X264 = {"preset": "medium", "threads": THREADS, "mbtree": "0"}
VP9 = {"deadline": "good", "cpu-used": "3", "row-mt": "0", "threads": THREADS, "b": "0"}
X264_CRF, VP9_CRF = 16, 24  # visually lossless; the scales differ
LIMITED_RANGE = 1  # AVColorRange
MAX_FPS = 240
MAX_GIF_FPS = 50  # players take delays below 2/100 s for 10/100 s
NEAR = 1e-6  # seconds; containers round times, so ties are not exact

Rate = Fraction | float | int


def as_rate(fps: Rate) -> Fraction:
    """A rate as files name it: of a float 29.97 is 30000/1001.

    Raises:
        ConfigError: There is no such rate.
    """
    rate = Fraction(fps).limit_denominator(1001) if np.isfinite(float(fps)) else Fraction(0)
    if not 0 < rate <= MAX_FPS:
        raise ConfigError(f"fps={fps}: want more than 0 and at most {MAX_FPS}")
    film = Fraction(round(fps * 1.001) * 1000, 1001) if isinstance(fps, float) else rate
    return film if rate.denominator > 1 and abs(film / rate - 1) < Fraction(1, 5000) else rate


def resample(frames: Iterable[tuple[float, Rgb]], fps: Rate, duration: float) -> Iterator[Rgb]:
    """Show timed frames at a constant rate, up or down, two of them in memory at a time.

    Output frame k shows the frame whose time is nearest to k / fps; of two equally near ones
    the earlier. Nothing is blended.

    Args:
        frames: (seconds, (H, W, 3)) in order of time, as `iter_frames` gives.
        fps: Frames per second wanted.
        duration: Seconds wanted; there are round(duration * fps) frames, at least one. The
            last frame stays where `frames` end early, the rest is not read where they go on.

    Returns:
        Iterator of (H, W, 3). A frame shown twice is one array: not to be changed in place.

    Raises:
        ConfigError: fps or duration cannot be.
        MediaError: There are no frames.

    Example:
        >>> clip = [(0.0, "a"), (0.5, "b"), (1.0, "c")]
        >>> "".join(resample(clip, fps=4, duration=1.25))
        'aabbc'
    """
    rate = as_rate(fps)
    if not 0 < duration < np.inf:
        raise ConfigError(f"duration={duration}: want seconds, more than 0")
    return _nearest(iter(frames), rate, max(1, int(duration * rate + 0.5)))


def _nearest(frames: Iterator[tuple[float, Rgb]], rate: Fraction, count: int) -> Iterator[Rgb]:
    shown = next(frames, None)
    if shown is None:
        raise MediaError("the clip has 0 frames; want at least 1")
    following = next(frames, None)
    for index in range(count):
        time = float(index / rate)
        while following and abs(following[0] - time) < abs(time - shown[0]) - NEAR:
            shown, following = following, next(frames, None)
        yield shown[1]


class ClipWriter:
    """Streams frames into a clip that appears whole or not at all.

    The suffix picks the container: mp4, mov, mkv hold H.264, webm VP9, gif a palette per
    frame. Pictures are BT.709, limited range, and tagged so, and 4:2:0 unless asked otherwise;
    an odd height or width grows by one, repeating the last row or column. The same frames give
    the same bytes with the same build of FFmpeg. Until the end all goes to a hidden file beside
    `path`, which any exception removes; see `image.atomic`.

    Example:
        >>> with ClipWriter("out.mp4", 25, (480, 640), audio_from="driving.mp4") as clip:
        ...     for frame in frames:
        ...         clip.write(frame)
    """

    def __init__(
        self,
        path: str | Path,
        fps: Rate,
        size: tuple[int, int],
        *,
        audio_from: str | Path | None = None,
        audio_start: float = 0.0,
        overwrite: bool = False,
        crf: int | None = None,
        full_chroma: bool = False,
    ) -> None:
        """Check everything that can be checked before any work; nothing is written yet.

        Args:
            path: File to be written; its suffix is one of `CLIP_SUFFIXES`.
            fps: Frames per second, constant.
            size: (height, width) of the frames.
            audio_from: Clip whose sound is taken, from its first frame on, up to the length of
                this one. One without sound gives none; a gif never has any.
            audio_start: Seconds of `audio_from` before the sound that is taken.
            overwrite: Whether a file that is there is replaced.
            crf: Quality of H.264 (default 16) or VP9 (24), less is better.
            full_chroma: Keep the colour of every pixel (4:4:4) in H.264; some players cannot.

        Raises:
            ConfigError: The suffix, rate or crf cannot be.
            MediaError: As `check_output`; or `audio_from` is no clip.
            ShapeError: An empty size.
        """
        self.path = check_output(path, overwrite, CLIP_SUFFIXES)
        self.suffix = self.path.suffix.lower()
        self.fps = as_rate(fps)
        if self.suffix == ".gif" and self.fps > MAX_GIF_FPS:
            raise ConfigError(f"fps={fps}: a gif shows at most {MAX_GIF_FPS}; write an mp4")
        if min(size) < 1:
            raise ShapeError(f"size is {size}, want at least (1, 1)")
        if crf is not None and not 0 <= crf <= 51:
            raise ConfigError(f"crf={crf}: want 0 to 51")
        self.size, self.crf = size, crf
        self.pix_fmt = "yuv444p" if full_chroma else "yuv420p"
        if full_chroma and self.suffix in (".gif", ".webm"):
            raise ConfigError(f"{self.path}: full chroma is for mp4, mov and mkv")
        self.frames = 0
        """Frames written so far."""
        self._audio_from = None if audio_from is None else Path(audio_from)
        heard = self._audio_from is not None and self.suffix != ".gif"
        driving = probe(self._audio_from) if heard and self._audio_from else None
        self._sound_start = None
        if driving and driving.has_audio:
            self._sound_start = driving.start + audio_start
        self._life: AbstractContextManager[None] | None = None
        self._reformatter = VideoReformatter()
        self._palette: Graph | None = None
        self._sound: Iterator[TimedPacket] = iter(())
        self._next_sound: TimedPacket | None = None

    def __enter__(self) -> Self:
        self._life = self._open()
        self._life.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._life is not None
        return self._life.__exit__(kind, error, trace)

    def write(self, frame: Rgb) -> None:
        """Append a frame.

        Args:
            frame: (H, W, 3) uint8 of the size that was announced.

        Raises:
            MediaError: It cannot be written, for instance on a full disk.
            ShapeError: Another shape or type.
        """
        assert self._life is not None, "ClipWriter is used outside of its with block"
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            wanted = f"want {(*self.size, 3)} uint8"
            raise ShapeError(f"frame {self.frames} is {frame.shape} {frame.dtype}, {wanted}")
        with self._refusals():
            self._push(frame)
            self.frames += 1
            self._add_sound()

    @contextmanager
    def _open(self) -> Iterator[None]:
        with ExitStack() as stack:
            hidden = stack.enter_context(atomic(self.path))
            options = {"fflags": "+bitexact", "movflags": "+faststart"}  # no dates, no versions
            with self._refusals():
                self._container: OutputContainer = av.open(
                    f"file:{hidden}", "w", format=FORMATS[self.suffix], container_options=options
                )
            stack.callback(self._abandon)
            self._track = self._add_track()
            if self._sound_start is not None and self._audio_from is not None:
                source = stack.enter_context(open_video(self._audio_from))
                with self._refusals():
                    self._sound = carry_sound(
                        self._audio_from, source, self._sound_start, self._container, self.suffix
                    )
                    self._next_sound = next(self._sound, None)
            yield
            if self.frames == 0:
                raise MediaError(f"{self.path}: no frames to write; want at least 1")
            with self._refusals():
                self._push(None)
                self._container.close()

    def _abandon(self) -> None:
        """Let go of the file; after a good end it is closed already and this does nothing."""
        with suppress(av.error.FFmpegError, OSError):
            self._container.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"{self.path}: cannot be written: {error.strerror}") from error

    def _add_track(self) -> VideoStream:
        height, width = self.size
        if self.suffix == ".gif":
            track = self._container.add_stream("gif", rate=self.fps)
            track.height, track.width, track.pix_fmt = height, width, "pal8"
            track.codec_context.time_base = Fraction(1, 100)
            self._palette = _palette_graph(height, width)
            return track
        webm = self.suffix == ".webm"
        crf = self.crf if self.crf is not None else (VP9_CRF if webm else X264_CRF)
        track = self._container.add_stream(
            "libvpx-vp9" if webm else "libx264",
            rate=self.fps,
            options={**(VP9 if webm else X264), "crf": str(crf)},
        )
        track.height, track.width = height + height % 2, width + width % 2
        track.pix_fmt = self.pix_fmt
        context = track.codec_context
        context.time_base = 1 / self.fps
        context.color_range = LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = BT709
        return track

    def _push(self, frame: Rgb | None) -> None:
        """Encode a frame, or with None what the encoder still holds."""
        for picture in self._pictures(frame):
            self._container.mux(self._track.encode(picture))
        if frame is None:
            self._container.mux(self._track.encode(None))

    def _pictures(self, frame: Rgb | None) -> Iterator[VideoFrame]:
        if self._palette is not None:
            picture = None if frame is None else VideoFrame.from_ndarray(frame, "rgb24")
            if picture is not None:
                picture.pts = round(100 * self.frames / self.fps)
                picture.time_base = Fraction(1, 100)
            self._palette.vpush(picture)
            with suppress(av.error.BlockingIOError, av.error.EOFError):
                while True:
                    yield self._palette.vpull()
        elif frame is not None:
            odd = [(0, side % 2) for side in self.size]
            even = np.pad(frame, [*odd, (0, 0)], mode="edge") if any(map(sum, odd)) else frame
            picture = self._reformatter.reformat(
                VideoFrame.from_ndarray(np.ascontiguousarray(even), "rgb24"),
                format=self.pix_fmt,
                dst_colorspace=BT709,
                dst_color_range=LIMITED_RANGE,
                interpolation=SWS,
            )
            picture.pts, picture.time_base = self.frames, 1 / self.fps
            yield picture

    def _add_sound(self) -> None:
        """Mux the sound that lies before the end of the frames written so far."""
        end = float(self.frames / self.fps)
        while self._next_sound is not None and self._next_sound[0] < end:
            self._container.mux(self._next_sound[1])
            self._next_sound = next(self._sound, None)


def _palette_graph(height: int, width: int) -> Graph:
    """RGB in, indices into a palette of its own for every frame out."""
    graph = Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 100)
    )
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def write_clip(
    path: str | Path,
    frames: Iterable[Rgb],
    fps: Rate,
    *,
    audio_from: str | Path | None = None,
    overwrite: bool = False,
    crf: int | None = None,
    full_chroma: bool = False,
) -> int:
    """Write frames as a clip of the first one's size; see `ClipWriter`.

    Returns:
        The number of frames written.

    Raises:
        MediaError: As `ClipWriter`; or there are no frames.
    """
    check_output(path, overwrite, CLIP_SUFFIXES)
    iterator = iter(frames)
    frame = next(iterator, None)
    if frame is None:
        raise MediaError(f"{path}: no frames to write; want at least 1")
    size = (frame.shape[0], frame.shape[1])
    writer = ClipWriter(
        path, fps, size, audio_from=audio_from, overwrite=overwrite, crf=crf,
        full_chroma=full_chroma,
    )  # fmt: skip
    with writer:
        while frame is not None:
            writer.write(frame)
            frame = next(iterator, None)
    return writer.frames
