"""Makes the clips that the tests of reading and writing need.

`drawing` is frame i so that a decoder's mistakes show: a quarter red, a quarter blue, the rest
grey of a brightness that grows with i.
"""

from fractions import Fraction

import av
import numpy as np

from dreamactor.video import iter_frames

FAST = {"libx264": {"preset": "ultrafast", "crf": "4"}, "libvpx-vp9": {"cpu-used": "8", "crf": "4"}}
FAST["libsvtav1"] = {"preset": "12", "crf": "4"}
FAST["libx264rgb"] = FAST["libx264"]
FAST["libx265"] = {"preset": "ultrafast", "crf": "4", "x265-params": "log-level=none"}


def drawing(i, height=48, width=64):
    frame = np.full((height, width, 3), 40 + 4 * i, np.uint8)
    frame[: height // 2, : width // 2] = (220, 20, 20)
    frame[height // 2 :, width // 2 :] = (20, 20, 220)
    return frame


def film(
    path,
    count=10,
    fps=25,
    codec="libx264",
    pix_fmt="yuv420p",
    size=(48, 64),
    times=None,
    options=None,
    draw=drawing,
    aspect=None,
    turn=None,
    audio=None,
    container=None,
    seconds=None,
    frames_first=0,
):
    """Write a clip by PyAV alone; `times` are pts in 1 / fps, `turn` is degrees and mirrors."""
    with av.open(str(path), "w", container_options=container or {}) as output:
        track = output.add_stream(codec, rate=fps, options=options or FAST.get(codec, {}))
        track.height, track.width, track.pix_fmt = *size, pix_fmt
        track.codec_context.time_base = 1 / Fraction(fps)
        if aspect:
            track.codec_context.sample_aspect_ratio = aspect
        if turn:
            track.set_display_rotation(*turn)
        sound = audio and output.add_stream(audio, rate=48000, layout="stereo")
        for i in range(count):
            frame = draw(i, *size)
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(frame, "rgb24")
            frame.pts = times[i] if times else i + frames_first
            frame.time_base = 1 / Fraction(fps)
            output.mux(track.encode(frame))
        output.mux(track.encode(None))
        if sound:
            output.mux(sound.encode(tone(seconds or count / fps)))
            output.mux(sound.encode(None))
    return path


def tone(seconds, rate=48000):
    wave = 9000 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None].astype(np.int16), "s16", "stereo")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return frame


def frames_of(path):
    return [frame for _, frame in iter_frames(path)]


def times_of(path):
    return [round(time, 3) for time, _ in iter_frames(path)]


def grey(frame):
    """Brightness of the grey quarter, top right as filmed."""
    height, width = frame.shape[:2]
    return float(frame[4 : height // 2 - 4, width // 2 + 4 : -4].mean())
