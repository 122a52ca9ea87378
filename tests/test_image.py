"""Pictures: what is read equals what a viewer shows, and what cannot be is refused in a line."""

import errno
import io
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from dreamactor.errors import ConfigError, DreamActorError, MediaError, ShapeError
from dreamactor.image import (
    BACKGROUND,
    Box,
    check_input,
    check_output,
    contact_sheet,
    fit,
    read_image,
    resize,
    unfit,
    write_png,
)

RED, SKY = (200, 30, 60), (40, 120, 220)


def picture(height=12, width=16):
    """(H, W, 3), every pixel another: a quarter turn or a mirror image differs."""
    y, x = np.mgrid[:height, :width]
    return np.stack([10 * y, 10 * x, 5 * (x + y)], -1).astype(np.uint8)


def flat(mode, colour):
    return Image.new(mode, (16, 12), colour)


def palette(transparent):
    image = flat("RGB", RED).quantize(4)
    image.info.update({"transparency": 0} if transparent else {})
    return image


def deep(values):
    return Image.fromarray(np.full((12, 16), values, np.uint16))


@pytest.mark.parametrize(
    ("suffix", "image", "options", "shown"),
    [
        (".png", flat("RGB", RED), {}, RED),
        (".bmp", flat("RGB", RED), {}, RED),
        (".tiff", flat("RGB", RED), {}, RED),
        (".webp", flat("RGB", RED), {"lossless": True}, RED),
        (".avif", flat("RGB", RED), {"quality": 100}, RED),
        (".jpg", flat("RGB", RED), {"quality": 100}, RED),
        (".jpg", flat("CMYK", (0, 255, 255, 0)), {"quality": 100}, (255, 0, 0)),
        (".jpg", flat("L", 77), {}, (77, 77, 77)),
        (".png", flat("L", 77), {}, (77, 77, 77)),
        (".png", flat("1", 1), {}, (255, 255, 255)),
        (".png", flat("LA", (77, 255)), {}, (77, 77, 77)),
        (".png", flat("RGBA", (*RED, 0)), {}, BACKGROUND),
        (".webp", flat("RGBA", (*RED, 0)), {}, BACKGROUND),
        (".png", flat("RGBA", (*RED, 255)), {}, RED),
        (".png", flat("RGBA", (*RED, 51)), {}, (142, 108, 114)),  # 0.2 * red + 0.8 * 128
        (".png", palette(transparent=False), {}, RED),
        (".png", palette(transparent=True), {}, BACKGROUND),
        (".gif", palette(transparent=True), {}, BACKGROUND),
        (".png", deep(0), {}, (0, 0, 0)),
        (".png", deep(257 * 77), {}, (77, 77, 77)),
        (".tiff", deep(257 * 77 + 128), {}, (77, 77, 77)),
        (".png", deep(257 * 77 + 129), {}, (78, 78, 78)),
        (".png", deep(65535), {}, (255, 255, 255)),
    ],
)
def test_reading_is_exact_for_every_kind_of_pixel(tmp_path, suffix, image, options, shown):
    path = tmp_path / f"a{suffix}"
    image.save(path, **options)
    read = read_image(path)
    assert read.shape == (12, 16, 3)
    assert read.dtype == np.uint8
    lossy = 2 if suffix in (".jpg", ".avif") else 0
    assert np.abs(read.astype(int) - shown).max() <= lossy


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_reading_is_unchanged_by_the_way_the_camera_was_held(tmp_path, suffix, tag):
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(tag, tag)  # storing as the inverse of what is shown
    exif = Image.Exif()
    exif[0x0112] = undo
    stored = Image.fromarray(picture())
    stored.getexif()[0x0112] = undo
    stored = ImageOps.exif_transpose(stored)
    exif[0x0112] = tag
    lossless = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}
    stored.save(tmp_path / f"a{suffix}", exif=exif, **lossless.get(suffix, {}))
    difference = read_image(tmp_path / f"a{suffix}").astype(int) - picture()
    assert np.abs(difference).max() <= (6 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    first, second = flat("RGB", RED), flat("RGB", SKY)
    options = {"lossless": True} if suffix == ".webp" else {}
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second], **options)
    assert (read_image(tmp_path / f"a{suffix}") == RED).all()


def test_the_background_can_be_chosen(tmp_path):
    flat("RGBA", (*RED, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", background=(1, 2, 3)) == (1, 2, 3)).all()


def profile(swapped):
    """The sRGB profile; swapped: one where stored red means blue, and the other way round."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if swapped:
        data = data.replace(b"\0s\0R\0G\0B", b"\0o\0u\0r\0s")
        data = data.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")
    return data


@pytest.mark.parametrize(
    ("icc", "mode", "shown"),
    [
        (profile(swapped=False), "RGB", RED),
        (profile(swapped=True), "RGB", RED[::-1]),
        (profile(swapped=True), "RGBA", RED[::-1]),
        (profile(swapped=True)[:200], "RGB", RED),
        (b"not a profile", "RGB", RED),
    ],
)
def test_an_embedded_profile_is_converted_to_srgb_or_ignored(tmp_path, icc, mode, shown):
    flat("RGB", RED).convert(mode).save(tmp_path / "a.png", icc_profile=icc)
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - shown).max() <= 2


def png_head(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def encoded(kind, **options):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "no such file"),
        ("empty.png", b"", "the file is empty"),
        (
            "text.png",
            b"hello, I am a picture",
            "not a picture of a kind that is read, or its head is damaged; want PNG, JPEG",
        ),
        ("kind.ppm", encoded("PPM"), "not a picture of a kind that is read"),
        ("head.tiff", b"II*\0" + bytes(500), "a TIFF with a damaged head"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        ("clip.png", b"\0\0\0\x20ftypisom" + bytes(500), "not a picture"),
        ("huge.png", png_head(30_000, 30_000), "900 megapixels, the limit is 100; scale it down"),
        ("big.png", png_head(12_000, 10_000), "120 megapixels, the limit is 100; scale it down"),
        ("bare.png", png_head(64, 64), "truncated or damaged"),
        ("half.png", encoded("PNG")[:3000], "truncated or damaged"),
        ("half.jpg", encoded("JPEG")[:1500], "truncated or damaged"),
        ("half.webp", encoded("WEBP")[:1000], "damaged"),
        ("half.gif", encoded("GIF")[:3000], "truncated or damaged"),
        ("half.tiff", encoded("TIFF")[:3000], "truncated or damaged"),
        ("half.avif", encoded("AVIF")[:900], "damaged"),
        ("bent.png", encoded("PNG").replace(b"IDAT", b"IDAX"), "damaged"),
    ],
)
def test_reading_refuses_what_is_no_whole_picture(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError, match=message) as refusal:
        read_image(tmp_path / name)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_damaged_tiff_is_told_by_one_line_alone(tmp_path, capfd):
    """libtiff, which unpacks LZW, writes to stderr itself."""
    damaged = bytearray(encoded("TIFF", compression="tiff_lzw"))
    damaged[2000:2400:20] = b"\xff" * 20
    (tmp_path / "a.tiff").write_bytes(damaged)
    with pytest.raises(MediaError, match="truncated or damaged"):
        read_image(tmp_path / "a.tiff")
    assert capfd.readouterr().err == ""
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"


def test_reading_refuses_folders(tmp_path):
    with pytest.raises(MediaError, match="is a folder"):
        read_image(tmp_path)


def colours_of_floats():
    """A TIFF of 4 x 4 RGB float32 pixels, which Pillow neither writes nor opens."""
    kinds = {"short": 3, "long": 4}
    tags = [
        *((256, "short", 4), (257, "short", 4), (258, "short", 32), (259, "short", 1)),
        *((262, "short", 2), (273, "long", 134), (277, "short", 3), (278, "short", 4)),
        *((279, "long", 192), (339, "short", 3)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kinds[kind], 1, v) for tag, kind, v in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + bytes(192)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4), np.float32), "floating-point pixels; save it with 8 or 16 bits"),
        (colours_of_floats(), "with floating-point or odd pixels; save it with 8 or 16 bits"),
        (np.full((4, 4), 70_000, np.int32), "pixels from 70000 to 70000, want 0 to 65535; save it"),
        (np.full((4, 4), -1, np.int32), "pixels from -1 to -1, want 0 to 65535; save it"),
    ],
)
def test_reading_refuses_other_than_8_and_16_bits_in_words(tmp_path, pixels, message):
    path = tmp_path / "a.tiff"
    if isinstance(pixels, bytes):
        path.write_bytes(pixels)
    else:
        Image.fromarray(pixels).save(path)
    with pytest.raises(MediaError, match=message) as refusal:
        read_image(path)
    assert "damaged picture" not in str(refusal.value)


def test_integers_of_32_bits_that_16_hold_are_read_as_these(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 77, np.int32)).save(tmp_path / "a.tiff")
    assert (read_image(tmp_path / "a.tiff") == 77).all()


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "huge.png").write_bytes(png_head(30_000, 30_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MediaError):
        read_image(tmp_path / "huge.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("shape", [(12, 16, 3), (12, 16), (1, 1, 3)])
def test_png_is_exact(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    assert (np.asarray(Image.open(tmp_path / "a.png")) == image).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_png_refuses_what_is_no_picture(tmp_path):
    for image in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ShapeError, match="uint8"):
            write_png(tmp_path / "a.png", image)
    with pytest.raises(ConfigError, match=r"\.png"):
        write_png(tmp_path / "a.jpg", picture())
    assert not list(tmp_path.iterdir())


def test_a_failed_png_leaves_the_old_one(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", picture())

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(MediaError, match="No space left on device"):
        write_png(tmp_path / "a.png", 255 - picture())
    assert (read_image(tmp_path / "a.png") == picture()).all()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "overwrite", "message"),
    [
        ("there.mp4", False, "is there already; pass --overwrite"),
        ("a.xyz", False, "ends in '.xyz', want one of .mp4 .gif"),
        ("a", False, "ends in 'no suffix', want one of .mp4 .gif"),
        ("gone/a.mp4", True, "does not exist; create it first"),
        ("there.mp4/a.mp4", True, "is not a folder"),
        ("folder.mp4", True, "is a folder"),
    ],
)
def test_an_output_is_refused_before_any_work(tmp_path, name, overwrite, message):
    (tmp_path / "there.mp4").write_bytes(b"old")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(DreamActorError, match=message):
        check_output(tmp_path / name, overwrite, (".mp4", ".gif"))
    assert check_output(tmp_path / "there.mp4", True, (".mp4",)) == tmp_path / "there.mp4"


def test_an_output_is_refused_in_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(MediaError, match="no permission to write"):
        check_output(tmp_path / "a.mp4", False)


@pytest.mark.parametrize("fault", ["locked", "long"])
def test_refuses_what_cannot_be_reached(tmp_path, monkeypatch, fault):
    path, stat = tmp_path / ("a" * 300 if fault == "long" else "locked") / "a.png", os.stat

    def locked(at, **more):  # root may enter any folder
        if "locked" in str(at):
            raise PermissionError(errno.EACCES, "Permission denied", str(at))
        return stat(at, **more)

    monkeypatch.setattr("os.stat", locked)
    wanted = {"locked": "cannot be reached: Permission denied", "long": "reached: File name too"}
    for asked in (check_input, lambda at: check_output(at, False)):
        with pytest.raises(MediaError, match=wanted[fault]):
            asked(path)


def test_resizing_is_exact_area_averaging_down():
    small = resize(picture(), (6, 8))
    blocks = picture().astype(float).reshape(6, 2, 8, 2, 3).mean((1, 3))
    assert np.abs(small - blocks).max() <= 0.5


@pytest.mark.parametrize("size", [(12, 16), (1, 1), (24, 32), (5, 40), (40, 5), (13, 15)])
def test_resizing_leaves_a_flat_picture_flat(size):
    flat_picture = np.full((12, 16, 3), RED, np.uint8)
    assert (resize(flat_picture, size) == np.full((*size, 3), RED)).all()


def test_resizing_to_its_own_size_is_exact():
    assert (resize(picture(), (12, 16)) == picture()).all()


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((12, 16), Box(0, 0, 12, 16)),
        ((24, 32), Box(0, 0, 24, 32)),
        ((12, 20), Box(0, 2, 12, 16)),
        ((20, 16), Box(4, 0, 12, 16)),
        ((64, 64), Box(8, 0, 48, 64)),
        ((10, 64), Box(0, 25, 10, 13)),
    ],
)
def test_letterbox_is_exact(size, box):
    fitted, shown = fit(picture(), size, "letterbox", fill=(9, 8, 7))
    assert shown == box
    assert fitted.shape == (*size, 3)
    assert (box.cut(fitted) == resize(picture(), box.size)).all()
    bars = np.ones(size, bool)
    bars[box.top : box.top + box.height, box.left : box.left + box.width] = False
    assert (fitted[bars] == (9, 8, 7)).all()


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((12, 16), (slice(0, 12), slice(0, 16))),
        ((24, 32), (slice(0, 12), slice(0, 16))),
        ((12, 12), (slice(0, 12), slice(2, 14))),
        ((6, 12), (slice(2, 10), slice(0, 16))),
        ((24, 12), (slice(0, 12), slice(5, 11))),
    ],
)
def test_crop_is_the_centre(size, kept):
    fitted, box = fit(picture(), size, "crop")
    assert box == Box(0, 0, *size)
    assert (fitted == resize(np.ascontiguousarray(picture()[kept]), size)).all()


@pytest.mark.parametrize("mode", ["letterbox", "crop"])
def test_fit_and_back_has_the_sizes_promised(mode):
    draws = np.random.default_rng(0)
    for _ in range(100):
        height, width, tall, wide = draws.integers(1, 90, 4).tolist()
        fitted, box = fit(np.full((height, width, 3), RED, np.uint8), (tall, wide), mode)
        assert fitted.shape == (tall, wide, 3)
        assert 0 <= box.top <= box.top + box.height <= tall
        assert 0 <= box.left <= box.left + box.width <= wide
        assert (unfit(fitted, box) == RED).all()
        assert unfit(fitted, box, (height, width)).shape == (height, width, 3)


def test_a_smooth_picture_survives_fit_and_back():
    y, x = np.mgrid[:96, :128] / 128
    smooth = np.stack([200 * x, 200 * y, 100 + 50 * np.sin(6 * x)], -1).astype(np.uint8)
    fitted, box = fit(smooth, (160, 160), "letterbox")
    assert np.abs(unfit(fitted, box, (96, 128)).astype(int) - smooth).max() <= 3


def test_fit_refuses():
    with pytest.raises(ConfigError, match="fit='stretch': want letterbox or crop"):
        fit(picture(), (8, 8), "stretch")
    with pytest.raises(ShapeError, match="want at least"):
        fit(picture(), (0, 8), "crop")
    for image in (picture()[..., 0], picture() / 255, picture()[:0]):
        with pytest.raises(ShapeError, match=r"\(H, W, 3\) uint8"):
            fit(image, (8, 8), "crop")


def test_a_contact_sheet_shows_every_frame_and_label():
    colours = [(0, 0, 200), (0, 200, 0), (200, 0, 0)]
    frames = [np.full((30, 40, 3), colour, np.uint8) for colour in colours]
    sheet = contact_sheet([("three frames", frames), ("one", frames[:1]), ("", [])], height=60)
    counts = [int((sheet == colour).all(-1).sum()) for colour in colours]
    assert counts == [2 * 60 * 80, 60 * 80, 60 * 80]
    label = sheet[6:26]
    assert (label == 0).any()  # black letters
    assert contact_sheet([("three frames", frames)], height=60).shape[0] < sheet.shape[0]


def test_long_labels_are_folded_and_stay_on_the_sheet():
    frame = np.full((30, 40, 3), RED, np.uint8)
    sheet = contact_sheet([("mmmm " * 40, [frame])], height=60)
    assert sheet.shape[1] <= 340
    assert sheet.shape[0] > 60 + 5 * 20
    assert (sheet[:, -4:] == 255).all()


def test_a_contact_sheet_refuses_to_be_empty():
    for rows in ([], [("nothing", [])]):
        with pytest.raises(ShapeError, match="no frames"):
            contact_sheet(rows)


def test_paths_may_be_strings(tmp_path: Path):
    write_png(str(tmp_path / "a.png"), picture())
    assert (read_image(str(tmp_path / "a.png")) == picture()).all()
