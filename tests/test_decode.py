"""Reading clips: the frames and times filmed come out, and damage is refused in one line."""

import itertools
import os
import random
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from filming import drawing, film, frames_of, grey, times_of, tone
from PIL import Image

import dreamactor.decode
from dreamactor.errors import MediaError
from dreamactor.image import BACKGROUND
from dreamactor.video import iter_frames, probe


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv444p"),
        ("a.mkv", "libx264", "yuv422p10le"),
        ("a.mp4", "libx264", "yuv420p10le"),
        ("a.mp4", "libx265", "yuv420p10le"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mp4", "libsvtav1", "yuv420p10le"),
        ("a.mkv", "libx264rgb", "rgb24"),
        ("a.mkv", "ffv1", "bgr0"),
        ("a.mkv", "ffv1", "gray"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.avi", "libx264", "yuv420p"),
        ("a.mov", "prores_ks", "yuv422p10le"),
        ("a.mov", "png", "rgb24"),
    ],
)
def test_every_codec_gives_the_frames_filmed(tmp_path, name, codec, pix_fmt):
    path = film(tmp_path / name, codec=codec, pix_fmt=pix_fmt)
    clip = probe(path)
    assert (clip.height, clip.width, clip.frames, clip.fps) == (48, 64, 10, 25)
    assert clip.duration == pytest.approx(0.4, abs=0.002)
    assert not clip.has_audio
    assert not clip.hdr
    assert times_of(path) == pytest.approx([i / 25 for i in range(10)], abs=0.002)
    for i, frame in enumerate(frames_of(path)):
        assert frame.shape == (48, 64, 3)
        assert frame.dtype == np.uint8
        assert grey(frame) == pytest.approx(40 + 4 * i, abs=2)
        if pix_fmt != "gray":
            assert np.abs(frame[4:20, 4:28].astype(int) - (220, 20, 20)).mean() < 6


MATRIX = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def painted(colour, matrix, full, deep):
    """A function drawing one flat colour, its YUV from the closed form (ITU-T H.273)."""
    kr, kb = MATRIX[matrix]
    r, g, b = (c / 255 for c in colour)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    scale = 4 if deep else 1
    yuv = (
        (255 * y, 255 * u + 128, 255 * v + 128)
        if full
        else (219 * y + 16, 224 * u + 128, 224 * v + 128)
    )
    stored = [round(value * scale) for value in yuv]

    def draw(_, height, width):
        frame = av.VideoFrame(width, height, "yuv420p10le" if deep else "yuv420p")
        for plane, value in zip(frame.planes, stored, strict=True):
            kind = np.uint16 if deep else np.uint8
            plane.update(np.full(plane.buffer_size // (2 if deep else 1), value, kind).tobytes())
        return frame

    return draw


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 60), (17, 99, 201)])
@pytest.mark.parametrize(
    ("tag", "matrix", "full", "deep", "size"),
    [
        ("bt709", 1, False, False, (48, 64)),
        ("bt709", 1, True, False, (48, 64)),
        ("smpte170m", 6, False, False, (48, 64)),
        ("bt470bg", 5, False, True, (48, 64)),
        ("bt2020nc", 9, False, True, (48, 64)),
        (None, 6, False, False, (576, 720)),
        (None, 1, False, False, (720, 1280)),
        (None, 1, False, False, (640, 360)),
    ],
)
def test_colours_are_exact_for_every_matrix_and_range(
    tmp_path, colour, tag, matrix, full, deep, size
):
    params = f"fullrange={'on' if full else 'off'}" + (f":colormatrix={tag}" if tag else "")
    options = {"preset": "ultrafast", "qp": "0" if not deep else "1", "x264-params": params}
    if tag:
        options["x264-params"] += f":colorprim={tag.removesuffix('nc')}:transfer=bt709"
    pix_fmt = "yuv420p10le" if deep else "yuv420p"
    draw = painted(colour, matrix, full, deep)
    path = film(tmp_path / "a.mp4", 2, pix_fmt=pix_fmt, size=size, options=options, draw=draw)
    for frame in frames_of(path):
        assert np.abs(frame.astype(int) - colour).max() <= 2  # 8-bit YUV itself is off by 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
@pytest.mark.parametrize(
    ("turn", "seen"),
    [
        ((0,), lambda frame: frame),
        ((90,), lambda frame: np.rot90(frame)),
        ((180,), lambda frame: np.rot90(frame, 2)),
        ((-90,), lambda frame: np.rot90(frame, 3)),
        ((0, True), lambda frame: frame[:, ::-1]),
        ((0, False, True), lambda frame: frame[::-1]),
        ((90, True), lambda frame: None),
    ],
)
def test_the_display_matrix_is_applied(tmp_path, name, turn, seen):
    path = film(tmp_path / name, 3, turn=turn)
    clip, frames = probe(path), frames_of(path)
    assert all(frame.shape == (*clip.size, 3) for frame in frames)
    expected = seen(drawing(0))
    if expected is None:  # turned and mirrored: one of the two transpositions
        by_diagonal = [drawing(0).swapaxes(0, 1), np.rot90(drawing(0).swapaxes(0, 1), 2)]
        errors = [np.abs(frames[0].astype(int) - other).mean() for other in by_diagonal]
        assert min(errors) < 4
        return
    assert frames[0].shape == expected.shape
    assert np.abs(frames[0].astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("aspect", "turn", "size"),
    [
        (Fraction(4, 3), None, (48, 85)),
        (Fraction(3, 4), None, (64, 64)),
        (Fraction(1), None, (48, 64)),
        (Fraction(3, 2), (90,), (96, 48)),
    ],
)
def test_pixels_become_square_without_losing_any(tmp_path, aspect, turn, size):
    path = film(tmp_path / "a.mp4", 3, aspect=aspect, turn=turn)
    assert probe(path).size == size
    assert all(frame.shape == (*size, 3) for frame in frames_of(path))


@pytest.mark.parametrize("size", [(47, 63), (1, 1), (2, 3), (49, 64)])
def test_odd_sizes_are_exact(tmp_path, size):
    path = film(tmp_path / "a.mkv", 3, codec="ffv1", pix_fmt="yuv420p", size=size)
    assert probe(path).size == size
    assert frames_of(path)[0].shape == (*size, 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_variable_rates_keep_their_times(tmp_path, name):
    pts = [0, 1, 2, 10, 11, 20, 40, 41]
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    path = film(tmp_path / name, len(pts), times=pts, codec=codec)
    assert times_of(path) == pytest.approx([p / 25 for p in pts], abs=0.002)
    clip = probe(path)
    assert clip.frames == len(pts)
    assert float(clip.fps) == pytest.approx(len(pts) / (42 / 25), rel=0.01)
    assert clip.duration == pytest.approx(42 / 25, abs=0.05)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_time_starts_at_the_first_frame(tmp_path, name):
    path = film(tmp_path / name, frames_first=50, audio="aac", seconds=2.4)
    assert probe(path).start == pytest.approx(2, abs=0.05)
    assert probe(path).duration == pytest.approx(0.4, abs=0.002)
    assert times_of(path) == pytest.approx([i / 25 for i in range(10)], abs=0.002)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_b_frames_come_in_order(tmp_path, name):
    options = {"preset": "medium", "crf": "4", "x264-params": "bframes=3:b-adapt=0"}
    path = film(tmp_path / name, 40, options=options)
    assert [grey(frame) for frame in frames_of(path)] == pytest.approx(
        [40 + 4 * i for i in range(40)], abs=2
    )
    assert times_of(path) == pytest.approx([i / 25 for i in range(40)], abs=0.002)


@pytest.mark.parametrize(
    "fps", [Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 50, 60, 5, 1]
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_rate_is_exact(tmp_path, name, fps):
    assert probe(film(tmp_path / name, 12, fps=fps)).fps == fps


@pytest.mark.parametrize(
    ("name", "codec", "audio"),
    [("a.mp4", "libx264", "aac"), ("a.webm", "libvpx-vp9", "libopus"), ("a.avi", "mpeg4", "mp3")],
)
def test_sound_is_found_and_does_not_lengthen_the_clip(tmp_path, name, codec, audio):
    clip = probe(film(tmp_path / name, codec=codec, audio=audio, seconds=3))
    assert clip.has_audio
    assert clip.duration == pytest.approx(0.4, abs=0.05)  # avi: the encoder left a slot free
    assert clip.fps == 25


def spaced(path, ticks):
    """A picture at each tick of 1 / 25 s, the last of `ticks` being the end of the last."""
    with av.open(str(path), "w") as output:
        track = output.add_stream("mjpeg", rate=25)
        track.height, track.width, track.pix_fmt = 48, 64, "yuvj420p"
        for tick, end in itertools.pairwise(ticks):
            for packet in track.encode(av.VideoFrame.from_ndarray(drawing(tick), "rgb24")):
                packet.time_base = Fraction(1, 25)
                packet.pts = packet.dts = tick
                packet.duration = end - tick
                output.mux(packet)
    return path


@pytest.mark.parametrize(
    ("free", "count", "fps"),
    [
        (1, 12, 25),
        (2, 12, 25),
        (3, 12, Fraction(20)),
        (3, 150, 25),
        (3, 149, Fraction(149 * 25, 152)),
    ],
)
def test_the_rate_of_an_avi_is_its_headers_though_some_slots_are_free(tmp_path, free, count, fps):
    path = spaced(tmp_path / "a.avi", [0, *range(1 + free, count + free + 1)])
    clip = probe(path)
    assert (clip.frames, clip.duration) == (count, pytest.approx((count + free) / 25))
    assert clip.fps == fps


@pytest.mark.parametrize(
    ("end", "fps"),
    [(43, 8 / (43 / 25)), (82, 8 / (82 / 25)), (100, 7 / (41 / 25))],
)
def test_the_last_frames_time_counts_unless_it_outlasts_all_others(tmp_path, end, fps):
    path = spaced(tmp_path / "a.mp4", [0, 1, 2, 10, 11, 20, 40, 41, end])
    assert float(probe(path).fps) == pytest.approx(fps, rel=0.001)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_clips(tmp_path, suffix):
    delays = [40, 100, 200, 500]
    pictures = [Image.fromarray(drawing(5 * i)) for i in range(4)]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=delays, **options)
    clip = probe(path)
    assert (clip.height, clip.width, clip.frames, clip.has_audio) == (48, 64, 4, False)
    assert clip.duration == pytest.approx(0.84)
    assert float(clip.fps) == pytest.approx(4 / 0.84, rel=1e-3)
    assert times_of(path) == [0, 0.04, 0.14, 0.34]
    for i, frame in enumerate(frames_of(path)):
        assert (frame == drawing(5 * i)).all()


def test_transparent_animations_show_the_background_and_hasty_delays_are_100_ms(tmp_path):
    clear, solid = Image.new("RGBA", (8, 8)), Image.new("RGBA", (8, 8), (9, 200, 9, 255))
    path = tmp_path / "a.gif"
    clear.save(path, save_all=True, append_images=[solid], duration=10, disposal=2)
    frames = frames_of(path)
    assert (frames[0] == BACKGROUND).all()
    assert (frames[1] == (9, 200, 9)).all()
    assert times_of(path) == [0, 0.1]


def test_hdr_is_told(tmp_path):
    params = "colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc"
    options = {"preset": "ultrafast", "x264-params": params}
    assert probe(film(tmp_path / "a.mp4", 3, pix_fmt="yuv420p10le", options=options)).hdr


def test_a_reader_that_is_dropped_lets_go_of_the_file(tmp_path):
    path = film(tmp_path / "a.mp4")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        next(iter_frames(path))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def only_sound(path):
    with av.open(str(path), "w") as output:
        track = output.add_stream("aac", rate=48000, layout="stereo")
        output.mux(track.encode(tone(1)))
        output.mux(track.encode(None))


def encrypted(path):
    film(
        path,
        container={
            "encryption_scheme": "cenc-aes-ctr",
            "encryption_key": "0" * 32,
            "encryption_kid": "1" * 32,
        },
    )


def unknown_codec(path):
    path.write_bytes(film(path).read_bytes().replace(b"avc1", b"zzzz"))


def wrong_codec(path):
    """Headers of a codec that this FFmpeg demuxes but has no decoder for."""
    path.write_bytes(film(path).read_bytes().replace(b"avc1", b"evc1"))


def one_picture(path):
    Image.fromarray(drawing(0)).save(path)


def pages(path):
    Image.fromarray(drawing(0)).save(path, save_all=True, append_images=[Image.new("L", (9, 9))])


def huge(path):
    film(path, codec="rawvideo", pix_fmt="bgr24")
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 12  # BITMAPINFOHEADER: biWidth, biHeight
    data[at : at + 8] = (30_000).to_bytes(4, "little") * 2
    path.write_bytes(data)


def playlist(path):
    film(path.with_name("other.mp4"))
    path.write_text("ffconcat version 1.0\nfile 'other.mp4'\n")


def stream_list(path):
    film(path.with_name("other.mp4"))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.mp4", lambda path: None, "no such file"),
        ("a.mp4", Path.mkdir, "is a folder, want a file"),
        ("a.mp4", Path.touch, "the file is empty"),
        ("a.mp4", os.mkfifo, "not a plain file"),
        ("a.mp4", lambda path: path.write_text("I am a clip\n" * 99), "not a video"),
        ("a.mp4", lambda path: path.write_bytes(bytes(5000)), "not a video"),
        ("a.mp4", playlist, "not a video"),
        ("a.m3u8", stream_list, "not a video"),
        ("a.mp4", only_sound, "no video stream, only audio"),
        ("a.mkv", only_sound, "no video stream, only audio"),
        ("a.mp4", lambda path: film(path, 1), "has 1 frame; want at least 2"),
        ("a.webm", lambda path: film(path, 1, codec="libvpx-vp9"), "has 1 frame; want at least 2"),
        ("a.png", one_picture, "has 1 frame; want at least 2"),
        ("a.jpg", one_picture, "has 1 frame; want at least 2"),
        ("a.tiff", pages, "has 1 frame; want at least 2"),
        ("a.gif", one_picture, "has 1 frame; want at least 2"),
        ("a.webp", one_picture, "has 1 frame; want at least 2"),
        ("a.mp4", encrypted, "is encrypted"),
        ("a.mp4", unknown_codec, "codec is unknown"),
        ("a.mp4", wrong_codec, "convert it to H.264"),
        ("a.avi", huge, "no usable frame size in it; damaged, or above 8192 x 4320"),
    ],
)
def test_reading_refuses_what_is_no_clip(tmp_path, name, make, message):
    make(tmp_path / name)
    for read in (probe, iter_frames):  # the iterator refuses before the first frame is asked for
        with pytest.raises(MediaError, match=message) as refusal:
            read(tmp_path / name)
        assert name in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_the_size_limit_counts_displayed_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(dreamactor.decode, "MAX_CLIP_PIXELS", 48 * 64)
    assert probe(film(tmp_path / "a.mp4")).size == (48, 64)
    for options in ({"size": (50, 64)}, {"aspect": Fraction(3, 2)}):
        with pytest.raises(MediaError, match="the limit is 8192 x 4320; scale it down first"):
            iter_frames(film(tmp_path / "b.mp4", **options))


def test_names_are_never_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film(Path("a.mp4"))
    Path("concat:a.mp4").write_bytes(Path("a.mp4").read_bytes())
    assert probe("concat:a.mp4").frames == 10
    for name in ("concat:a.mp4|a.mp4", "http://localhost/a.mp4", "file:a.mp4", "pipe:0"):
        with pytest.raises(MediaError, match="no such file"):
            probe(name)


CLIPS = [
    ("a.mp4", {"container": {"movflags": "+faststart"}}),
    ("b.mp4", {}),
    ("c.mp4", {"container": {"movflags": "+frag_keyframe+empty_moov"}}),
    ("a.mkv", {}),
    ("a.webm", {"codec": "libvpx-vp9"}),
    ("a.avi", {"codec": "mpeg4"}),
]


@pytest.mark.parametrize(("name", "options"), CLIPS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.97])
def test_truncated_clips_are_refused_before_the_first_frame(tmp_path, name, options, share, capfd):
    data = film(tmp_path / name, 60, **options).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError, match=r"truncated|damaged|has [01] frame"):
        iter_frames(tmp_path / name)
    assert capfd.readouterr() == ("", "")  # FFmpeg's log stays off the terminal


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("missing", [1, 10, 500])
def test_truncated_animations_are_refused(tmp_path, suffix, missing):
    noise = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
    pictures = [Image.fromarray(frame) for frame in noise]
    path = tmp_path / f"a{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    path.write_bytes(path.read_bytes()[:-missing])
    if suffix == ".png" and missing <= 16:  # only the end mark of the file is gone
        assert len(frames_of(path)) == 6
        return
    with pytest.raises(MediaError, match=r"truncated|damaged"):
        frames_of(path)


def test_a_live_recording_without_a_length_is_whole(tmp_path):
    path = film(tmp_path / "a.webm", codec="libvpx-vp9", container={"live": "1"})
    assert probe(path).frames == 10
    assert len(frames_of(path)) == 10


def test_bytes_after_the_end_are_nobodys_business(tmp_path):
    for name, options in CLIPS[:2]:
        path = film(tmp_path / name, **options)
        path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xf0Exif" + bytes(100))
        assert len(frames_of(path)) == 10


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damage_in_the_middle_is_an_error_not_an_early_end(tmp_path, codec):
    noise = np.random.default_rng(0)
    draw = lambda i, h, w: noise.integers(0, 256, (h, w, 3), dtype=np.uint8)  # noqa: E731
    path = film(tmp_path / "a.mp4", 40, codec=codec, draw=draw)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = noise.integers(0, 256, 2000, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    frames = iter_frames(path)
    seen = list(itertools.islice(frames, 5))
    assert len(seen) == 5
    with pytest.raises(MediaError, match="damaged"):
        list(frames)


def test_lost_frames_are_an_error(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", 60)
    whole = probe(path)
    monkeypatch.setattr(dreamactor.decode, "probe", lambda _: replace(whole, frames=63))
    with pytest.raises(MediaError, match="60 of 63 frames could be decoded"):
        frames_of(path)
    monkeypatch.setattr(dreamactor.decode, "probe", lambda _: replace(whole, frames=62))
    assert len(frames_of(path)) == 60


def test_random_damage_is_read_or_refused_by_a_media_error(tmp_path):
    draws = random.Random(0)
    for name, options in CLIPS:
        data = film(tmp_path / name, **options).read_bytes()
        for _ in range(12):
            bent = bytearray(data)
            for _ in range(draws.choice([1, 5, 50])):
                bent[draws.randrange(len(bent))] = draws.randrange(256)
            (tmp_path / name).write_bytes(bent)
            with suppress(MediaError):  # and nothing else
                frames_of(tmp_path / name)
