"""Files of strangers, decoded where they can do little: in a process of their own, on a leash.

    server -> nursery (this module run as a program; has the decoders imported, opens no file)
                -> child, one for each file: limits of memory, time, file size and open files;
                   decodes, writes anew what it saw, says so in one line of JSON

The nursery forks, so a child is there in milliseconds. The environment that it gets has no token
and no key in it. What the rest of the server ever opens is what a child has encoded from pixels.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import cv2  # before the fork: a child would need a quarter of a second
import numpy as np

from dreamactor.errors import DreamActorError, MediaError
from dreamactor.image import Rgb, open_image, read_image, resize, write_png
from dreamactor.video import ClipWriter, iter_frames, probe, resample

MAX_FPS = 60
FILES = 64
NEAR = 1e-6  # seconds; k / fps is not exact


def take_picture(raw: Path, out: Path, limits: dict[str, Any]) -> dict[str, Any]:
    """Decode a picture and write its pixels as PNG.

    Args:
        raw: What was sent.
        out: The PNG to write.
        limits: Fields of `settings.Limits`.

    Returns:
        What is known of it.

    Raises:
        MediaError: Not a picture, damaged, or too large.
    """
    with open_image(raw) as image:
        kind, width, height = image.format, image.width, image.height
    if width * height > limits["megapixels"] * 1e6:
        raise MediaError(
            f"{raw}: {width} x {height} are {width * height / 1e6:.0f} megapixels, the limit is "
            f"{limits['megapixels']}; scale it down first"
        )
    picture = read_image(raw)
    picture = resize(picture, _within(picture.shape[:2], limits["side"]))
    write_png(out, picture)
    return {"format": kind, "width": picture.shape[1], "height": picture.shape[0]}


def take_clip(raw: Path, out: Path, limits: dict[str, Any]) -> dict[str, Any]:
    """Decode a clip and write its frames, at a constant rate, as H.264; sound comes along.

    Args:
        raw: What was sent.
        out: The mp4 to write.
        limits: Fields of `settings.Limits`.

    Returns:
        What is known of it.

    Raises:
        MediaError: Not a clip, damaged, too long or too large.
    """
    clip = probe(raw)
    if clip.width * clip.height > limits["frame_megapixels"] * 1e6:
        raise MediaError(
            f"{raw}: frames of {clip.width} x {clip.height}, the limit is "
            f"{limits['frame_megapixels']} megapixels; scale it down first"
        )
    if clip.duration > limits["seconds"] + 0.5:
        raise MediaError(
            f"{raw}: {clip.duration:.1f} s long, the limit is {limits['seconds']:g}; cut it first"
        )
    fps = min(clip.fps, Fraction(MAX_FPS))
    height, width = (max(2, side // 2 * 2) for side in _within(clip.size, limits["side"]))
    with ClipWriter(out, fps, (height, width), audio_from=raw) as writer:
        for frame in resample(iter_frames(raw), fps, clip.duration):
            writer.write(np.ascontiguousarray(resize(frame, (height, width))))
    return {
        "format": clip.codec,
        "width": width,
        "height": height,
        "fps": str(fps),
        "frames": writer.frames,
        "seconds": round(float(writer.frames / fps), 3),
        "audio": clip.has_audio,
    }


def cut(clip: Path, out: Path, start: float, end: float | None) -> None:
    """Write a part of a clip of ours; the sound is cut with it.

    Args:
        clip: From `take_clip`.
        out: The mp4 to write.
        start: Seconds.
        end: Seconds; None = to the end.

    Raises:
        MediaError: Fewer than two frames are left.
    """
    known = probe(clip)
    first = int(np.ceil(start * known.fps - NEAR))
    last = known.frames if end is None else int(np.ceil(end * known.fps - NEAR))
    if last - first < 2:
        raise MediaError(
            f"{clip}: {start:g} to {known.duration if end is None else end:g} s leave no two "
            f"frames of {known.duration:.2f} s; want a longer part"
        )

    def kept() -> Iterator[Rgb]:
        for index, (_, frame) in enumerate(iter_frames(clip)):
            if index >= last:
                return
            if index >= first:
                yield frame

    begin = float(first / known.fps)
    with ClipWriter(
        out, known.fps, known.size, audio_from=clip, audio_start=begin, overwrite=True
    ) as writer:
        for frame in kept():
            writer.write(frame)


def _within(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """(height, width) with the longer side at most `side`."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


# ---- the nursery ----------------------------------------------------------------------------


def main() -> None:
    """Fork a child for every line of JSON on stdin, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes stdin
    cv2.setNumThreads(1)  # threads reserve memory, of which a child has little
    children: dict[int, dict[str, Any]] = {}

    def bury(number: int, frame: FrameType | None) -> None:
        with suppress(ChildProcessError):  # none is left
            while True:
                child, status = os.waitpid(-1, os.WNOHANG)
                if child == 0:
                    return
                _bury(children.pop(child), status)

    signal.signal(signal.SIGCHLD, bury)
    for line in sys.stdin:
        ask = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until the child has a name
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            _decode(ask)
        children[child] = ask
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _bury(ask: dict[str, Any], status: int) -> None:
    """Say how a child ended, if it could not say so itself."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGALRM, signal.SIGXCPU):
        _say(ask, refused=f"takes more than {ask['limits']['decode_seconds']:g} s to decode")
    elif number or os.waitstatus_to_exitcode(status):
        _say(ask, refused="cannot be decoded: its decoder broke down")


def _decode(ask: dict[str, Any]) -> NoReturn:
    raw, out, limits = Path(ask["raw"]), Path(ask["out"]), ask["limits"]
    _leash(limits)
    take = take_picture if ask["kind"] == "reference" else take_clip
    try:
        facts = take(raw, out, limits)
    except (DreamActorError, MemoryError) as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            _say(ask, refused=f"takes more than {limits['decode_mb']} MiB of memory to decode")
            os._exit(0)
        text = str(error).replace(f"{raw}: ", "").replace(str(raw), "the file")
        _say(ask, refused=text.replace(str(out), "the file"))
    else:
        _say(ask, facts=facts)
    os._exit(0)


def _leash(limits: dict[str, Any]) -> None:
    """What this process may use from here on."""
    seconds = float(limits["decode_seconds"])
    if sys.platform == "linux":  # elsewhere nobody keeps to this limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        memory = pages * resource.getpagesize() + (int(limits["decode_mb"]) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    disk = 4 * (int(limits["clip_mb"]) << 20)
    for kind, most in (
        (resource.RLIMIT_CPU, int(seconds * 4) + 1),  # x264 has four threads
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process


def _say(ask: dict[str, Any], **what: object) -> None:
    """One line; below the size up to which lines of several processes stay whole in a pipe."""
    line = json.dumps({"id": ask["id"], **what})
    if len(line) > 4000:
        line = json.dumps({"id": ask["id"], "refused": "cannot be decoded"})
    os.write(1, (line + "\n").encode())


if __name__ == "__main__":
    main()
