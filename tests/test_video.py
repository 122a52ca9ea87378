"""Clips: resampled to the nearest frame, written whole or not at all, with the sound in place."""

import hashlib
import itertools
import os
import random
import resource
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from filming import drawing, film, frames_of, grey, times_of, tone

from dreamactor.errors import ConfigError, DreamActorError, MediaError, ShapeError
from dreamactor.video import CLIP_SUFFIXES, ClipWriter, iter_frames, probe, resample, write_clip

MEMORY = """
import resource, sys
from pathlib import Path
from dreamactor.video import ClipWriter, iter_frames, resample

def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

early = None
with ClipWriter(Path(sys.argv[2]), 50, (120, 160)) as writer:
    for index, frame in enumerate(resample(iter_frames(Path(sys.argv[1])), 50, 30.0)):
        writer.write(frame)
        early = memory() if index == 100 else early
print(writer.frames, memory() - early)
"""


def test_memory_is_unchanged_by_the_length(tmp_path):
    """1500 frames of 160 x 120 are 86 MB; read, resampled and written again they add nothing.

    In a process of its own: what other tests left behind moves the number.
    """
    draw = lambda i, h, w: np.full((h, w, 3), i % 251, np.uint8)  # noqa: E731
    path = film(tmp_path / "long.mp4", 1500, fps=50, size=(120, 160), draw=draw)
    argv = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / "again.mp4")]
    # as in test_variant: glibc else keeps what was freed between what was not
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    frames, grown = map(int, done.stdout.split())
    assert frames == 1500
    assert grown < 25e6


@pytest.mark.parametrize(
    ("times", "fps", "duration", "shown"),
    [
        ([0, 1, 2, 3], 1, 4, "abcd"),
        ([0, 1, 2, 3], 2, 4, "aabbccdd"),  # ties go to the earlier
        ([0, 1, 2, 3], 3, 2, "aabbbc"),
        ([0, 0.5, 1, 1.5], 1, 2, "ac"),
        ([0, 0.1, 0.9, 1.1], 1, 2, "ac"),  # 0.9 and 1.1 are as near: the earlier
        ([0, 0.1, 0.8, 1.1], 1, 2, "ad"),
        ([0, 1], 1, 5, "abbbb"),
        ([0, 5], 1, 5, "aaabb"),
        ([0, 1, 2, 3], 1, 2, "ab"),
        ([0], 10, 0.01, "a"),
        ([0, 0.033, 0.067, 0.1], 30, 4 / 30, "abcd"),  # times rounded by a container
        ([0, 1 / 60, 2 / 60, 3 / 60], Fraction(30), 4 / 60, "ac"),
    ],
)
def test_resampling_shows_the_nearest_frame(times, fps, duration, shown):
    assert "".join(resample(zip(times, "abcdef", strict=False), fps, duration)) == shown


def test_resampling_equals_a_search_over_all_frames():
    draws = random.Random(0)
    for _ in range(50):
        times = sorted(draws.sample(range(1000), 30))
        clip = [((time - times[0]) / 100, index) for index, time in enumerate(times)]
        fps = draws.choice([7, 24, 25, 30, 60])
        shown = list(resample(clip, fps, clip[-1][0] + 0.1))
        for k, index in enumerate(shown):
            distances = [abs(time - k / fps) for time, _ in clip]
            assert distances[index] == pytest.approx(min(distances), abs=1e-5)


def test_resampling_reads_no_further_than_it_must():
    endless = ((i / 10, i) for i in itertools.count())
    shown = resample(endless, 10, 100.0)
    assert [next(shown) for _ in range(3)] == [0, 1, 2]
    assert next(endless)[1] <= 5


def test_resampling_refuses():
    for fps in (0, -1, 241, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="want more than 0 and at most 240"):
            resample([(0.0, None)], fps, 1)
    for duration in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="want seconds"):
            resample([(0.0, None)], 25, duration)
    with pytest.raises(MediaError, match="0 frames"):
        list(resample([], 25, 1))


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
@pytest.mark.parametrize("fps", [24, Fraction(30000, 1001), 12.5])
def test_what_is_written_is_read_again(tmp_path, suffix, fps):
    path = tmp_path / f"a{suffix}"
    assert write_clip(path, (drawing(i) for i in range(12)), fps) == 12
    clip = probe(path)
    assert clip.size == (48, 64)
    assert clip.frames == 12
    assert float(clip.fps) == pytest.approx(float(fps), rel=0.02 if suffix == ".gif" else 1e-4)
    assert clip.duration == pytest.approx(12 / float(fps), abs=0.02)
    for i, frame in enumerate(frames_of(path)):
        assert grey(frame) == pytest.approx(40 + 4 * i, abs=2)
        assert np.abs(frame[4:20, 4:28].astype(int) - (220, 20, 20)).max() <= 8
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
def test_the_same_frames_give_the_same_bytes(tmp_path, suffix):
    sound = film(tmp_path / "sound.mkv", 20, audio="pcm_s16le")
    hashes = set()
    for _ in range(4):
        path = tmp_path / f"a{suffix}"
        frames = (np.roll(drawing(i, 96, 160), 3 * i, 1) for i in range(20))
        write_clip(path, frames, 25, audio_from=sound, overwrite=True)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
@pytest.mark.parametrize("size", [(47, 64), (48, 63), (47, 63)])
def test_odd_sizes_grow_by_repeating_the_edge(tmp_path, suffix, size):
    path = tmp_path / f"a{suffix}"
    write_clip(path, [drawing(i, *size) for i in range(3)], 25)
    even = size if suffix == ".gif" else tuple(side + side % 2 for side in size)
    assert probe(path).size == even
    error = np.abs(frames_of(path)[0][: size[0], : size[1]].astype(int) - drawing(0, *size))
    assert error.mean() < 4
    edge = frames_of(path)[0].astype(int)
    assert np.abs(edge[-1] - edge[-2]).mean() < 8


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_colours_are_tagged_bt709_limited(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_clip(path, [drawing(0)] * 3, 25)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.format.name == "yuv420p"
        assert (frame.colorspace, frame.color_range) == (1, 1)
        assert (frame.color_primaries, frame.color_trc) == (1, 1)
        assert frame.to_ndarray()[:20, :28].mean() == pytest.approx(16 + 219 * 0.2459, abs=2)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_the_index_is_in_front(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_clip(path, [drawing(0)] * 3, 25)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_lower_crf_is_better(tmp_path):
    frames = [np.roll(drawing(i, 96, 160), 7 * i, 1) for i in range(8)]
    sizes = []
    for crf in (4, 16, 40):
        write_clip(tmp_path / "a.mp4", frames, 25, crf=crf, overwrite=True)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)


def sound_of(path):
    """(codec, first second, last second, payloads) of the sound of a clip."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        track = container.streams.audio[0]
        packets = [packet for packet in container.demux(track) if packet.size]
        ends = (
            packets[0].pts * track.time_base,
            (packets[-1].pts + packets[-1].duration) * track.time_base,
        )
        payloads = [bytes(packet) for packet in packets]
        return track.codec_context.codec.canonical_name, float(ends[0]), float(ends[1]), payloads


@pytest.mark.parametrize(
    ("source", "codec", "audio", "target", "heard"),
    [
        ("s.mp4", "libx264", "aac", ".mp4", "copy"),
        ("s.mp4", "libx264", "aac", ".mov", "copy"),
        ("s.mp4", "libx264", "aac", ".mkv", "copy"),
        ("s.mp4", "libx264", "aac", ".webm", "opus"),
        ("s.webm", "libvpx-vp9", "libopus", ".webm", "copy"),
        ("s.webm", "libvpx-vp9", "libopus", ".mp4", "copy"),
        ("s.webm", "libvpx-vp9", "libopus", ".mov", "aac"),
        ("s.mkv", "libx264", "libmp3lame", ".mp4", "copy"),
        ("s.mkv", "libx264", "libmp3lame", ".webm", "opus"),
        ("s.mov", "libx264", "pcm_s16le", ".mov", "copy"),
        ("s.mov", "libx264", "pcm_s16le", ".mp4", "aac"),
        ("s.avi", "mpeg4", "pcm_s16le", ".mkv", "copy"),
        ("s.mkv", "libx264", "flac", ".mov", "aac"),
        ("s.mp4", "libx264", "aac", ".gif", None),
    ],
)
def test_sound_is_copied_or_encoded_and_cut(tmp_path, source, codec, audio, target, heard):
    driving = film(tmp_path / source, 50, codec=codec, audio=audio)
    path = tmp_path / f"a{target}"
    write_clip(path, (drawing(i) for i in range(30)), 25, audio_from=driving)
    assert probe(path).frames == 30
    assert probe(path).duration == pytest.approx(1.2, abs=0.002)
    assert times_of(path) == pytest.approx([i / 25 for i in range(30)], abs=0.002)
    if heard is None:
        assert sound_of(path) is None
        return
    original, name = sound_of(driving), sound_of(path)[0]
    _, begin, end, payloads = sound_of(path)
    assert name == (original[0] if heard == "copy" else heard)
    assert begin == pytest.approx(0, abs=0.03)
    assert end == pytest.approx(1.2, abs=0.03)
    if heard == "copy":
        at = original[3].index(payloads[0])
        assert payloads == original[3][at : at + len(payloads)]


def loudness(path):
    """Mean absolute sound of every tenth of a second, 1 = full scale."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "mono", 48000)
        sound = np.zeros(48000 * 10)
        for frame in container.decode(audio=0):
            for part in resampler.resample(frame):
                at = round(float(part.pts * part.time_base) * 48000)
                samples = part.to_ndarray()[0]
                begin = max(0, -at)
                sound[at + begin : at + len(samples)] = samples[begin:]
        return np.abs(sound).reshape(-1, 4800).mean(1)


@pytest.mark.parametrize("target", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("audio", ["aac", "pcm_s16le"])
def test_sound_stays_with_the_pictures_when_they_start_late(tmp_path, target, audio):
    """Sound of 3 s, silent but for 1.0 to 1.2 s; pictures from 0.8 s on."""
    driving = tmp_path / "s.mkv"
    with av.open(str(driving), "w") as output:
        track = output.add_stream("libx264", rate=25)
        track.height, track.width, track.pix_fmt = 48, 64, "yuv420p"
        sound = output.add_stream(audio, rate=48000, layout="stereo")
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(drawing(i), "rgb24")
            frame.pts, frame.time_base = 20 + i, Fraction(1, 25)
            output.mux(track.encode(frame))
        output.mux(track.encode(None))
        beep = np.zeros(3 * 48000)
        beep[48000:57600] = 9000 * np.sin(np.arange(9600) / 20)
        pcm = av.AudioFrame.from_ndarray(np.repeat(beep, 2)[None].astype(np.int16), "s16", "stereo")
        pcm.sample_rate, pcm.pts, pcm.time_base = 48000, 0, Fraction(1, 48000)
        output.mux(sound.encode(pcm))
        output.mux(sound.encode(None))
    assert probe(driving).start == pytest.approx(0.8, abs=0.03)
    path = tmp_path / f"a{target}"
    write_clip(path, (drawing(i) for i in range(20)), 25, audio_from=driving)
    loud = loudness(path)
    assert (loud[2:4] > 0.1).all()
    assert (loud[[0, *range(5, 8)]] < 0.02).all()


def test_sound_shorter_than_the_clip_just_ends(tmp_path):
    driving = film(tmp_path / "s.mkv", 50, audio="pcm_s16le", seconds=0.5)
    for target in (".mp4", ".webm", ".mkv"):
        write_clip(tmp_path / f"a{target}", [drawing(0)] * 30, 25, audio_from=driving)
        assert sound_of(tmp_path / f"a{target}")[2] == pytest.approx(0.5, abs=0.04)
        assert probe(tmp_path / f"a{target}").frames == 30


def test_a_clip_without_sound_gives_none(tmp_path):
    write_clip(tmp_path / "a.mp4", [drawing(0)] * 3, 25, audio_from=film(tmp_path / "s.mp4"))
    assert not probe(tmp_path / "a.mp4").has_audio


def test_a_clip_can_be_replaced_by_one_made_from_it(tmp_path):
    path = film(tmp_path / "a.mp4", 20, audio="aac")
    write_clip(path, (255 - f for _, f in iter_frames(path)), 25, audio_from=path, overwrite=True)
    assert grey(frames_of(path)[0]) == pytest.approx(215, abs=3)
    assert probe(path).has_audio


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
def test_an_interrupted_clip_leaves_nothing_and_the_old_one_alone(tmp_path, suffix, fault):
    driving = film(tmp_path / "s.mp4", 50, audio="aac")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")

    def interrupted():
        yield from (drawing(i) for i in range(10))
        assert len(list(tmp_path.glob(f".a{suffix}.*.part"))) == 1
        raise fault

    with pytest.raises(fault):
        write_clip(path, interrupted(), 25, audio_from=driving, overwrite=True)
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "s.mp4"])


@pytest.fixture
def file_size_limit():
    """A disk that is full after so many bytes (Python ignores SIGXFSZ, writes fail instead)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
@pytest.mark.parametrize("missing", [1, 700, 20_000])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, suffix, missing, file_size_limit):
    noise = np.random.default_rng(0).integers(0, 256, (6, 96, 128, 3), dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    write_clip(path, noise, 25)
    size = path.stat().st_size
    path.unlink()
    file_size_limit(size - missing)
    with pytest.raises(MediaError, match="cannot be written: File too large"):
        write_clip(path, noise, 25)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.avi", {}, "want one of .mp4 .mov .mkv .webm .gif"),
        ("a", {}, "want one of .mp4 .mov .mkv .webm .gif"),
        ("there.mp4", {}, "is there already; pass --overwrite"),
        ("gone/a.mp4", {}, "does not exist; create it first"),
        ("a.mp4", {"fps": 0}, "fps=0: want more than 0"),
        ("a.gif", {"fps": 60}, "a gif shows at most 50"),
        ("a.mp4", {"crf": 99}, "crf=99: want 0 to 51"),
        ("a.mp4", {"size": (0, 5)}, "want at least"),
        ("a.mp4", {"audio_from": "gone.mp4"}, "gone.mp4: no such file"),
    ],
)
def test_writing_refuses_before_any_work(tmp_path, name, options, message):
    (tmp_path / "there.mp4").write_bytes(b"old")
    settings = {"fps": 25, "size": (48, 64)} | options
    with pytest.raises(DreamActorError, match=message):
        ClipWriter(tmp_path / name, settings.pop("fps"), settings.pop("size"), **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["there.mp4"]


def test_writing_refuses_frames_of_another_kind(tmp_path):
    for frame in (drawing(0)[:-2], drawing(0) / 255, drawing(0)[..., 0]):
        with pytest.raises(ShapeError, match=r"frame 1 is .* want \(48, 64, 3\) uint8"):
            write_clip(tmp_path / "a.mp4", [drawing(0), frame], 25)
    with pytest.raises(MediaError, match="no frames to write"):
        write_clip(tmp_path / "a.mp4", [], 25)
    with (
        pytest.raises(MediaError, match="no frames to write"),
        ClipWriter(tmp_path / "a.mp4", 25, (48, 64)),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("audio", ["aac", "pcm_s16le"])  # copied, and encoded anew
def test_exact_sound_begins_where_it_is_told(tmp_path, monkeypatch, audio):
    def late(seconds, rate=48000):
        """Silence, and a tone from half a second on."""
        frame = tone(seconds, rate)
        samples = frame.to_ndarray()
        samples[:, :rate] = 0  # two channels side by side
        quiet = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        quiet.sample_rate, quiet.pts, quiet.time_base = rate, 0, frame.time_base
        return quiet

    monkeypatch.setattr("filming.tone", late)
    clip = film(tmp_path / "clip.mkv", 25, audio=audio)
    for start, loud in ((0.0, False), (0.6, True)):
        out = tmp_path / f"{start}.mp4"
        with ClipWriter(out, 25, (48, 64), audio_from=clip, audio_start=start) as writer:
            for frame in frames_of(clip)[:10]:
                writer.write(frame)
        with av.open(str(out)) as part:
            sound = np.concatenate([f.to_ndarray() for f in part.decode(audio=0)], axis=1)
        assert sound.shape[1] == pytest.approx(0.4 * 48000, abs=2100)
        level = np.sqrt((sound[:, 4800:14400] ** 2).mean())  # away from the edges
        assert (level > 0.1) == loud, level
