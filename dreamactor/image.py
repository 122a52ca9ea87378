"""Pictures: read, fit to a size and back, lay out as a contact sheet, write whole or not at all.

Legend: H, W pixels. A picture is (H, W, 3) uint8, sRGB values, row 0 on top. A size is
(height, width), in the order of the array's shape.
"""

import io
import logging
import os
import re
import secrets
import struct
import sys
import textwrap
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from dreamactor.errors import ConfigError, MediaError, ShapeError

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else it talks of bad files on stderr

Rgb = NDArray[np.uint8]
"""(H, W, 3), or (H, W) where a mask or an alpha channel is meant."""

MAX_PIXELS = 100_000_000  # 300 MB as RGB; a 10,000 x 10,000 picture
BACKGROUND = (128, 128, 128)  # mid grey, behind what a picture leaves transparent
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    "AVIF",
)  # no EPS: Pillow would run Ghostscript
"""The only decoders a file can reach, whatever it claims to be."""

HUSHED = Lock()
"""Held while stderr leads nowhere; a second thread would take nowhere for what to come back to."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How such files begin."""
DEPTH = "save it with 8 or 16 bits a channel"

FAULTS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, OverflowError, RuntimeError, MemoryError),
)
"""What Pillow raises on damaged files."""


def check_input(path: str | Path) -> Path:
    """Return `path`, or say why nothing can be read from it.

    Raises:
        MediaError: It is missing, a folder, not a plain file, not readable, or empty; or what it
            lies in cannot be entered.
    """
    path = Path(path)
    with refusals(path, "reached"):
        if path.is_dir():
            raise MediaError(f"{path}: is a folder, want a file")
        if not path.exists():
            raise MediaError(f"{path}: no such file")
        if not path.is_file():
            raise MediaError(f"{path}: not a plain file")
        if not os.access(path, os.R_OK):
            raise MediaError(f"{path}: no permission to read it")
        if path.stat().st_size == 0:
            raise MediaError(f"{path}: the file is empty")
    return path


def check_output(path: str | Path, overwrite: bool, suffixes: Collection[str] = ()) -> Path:
    """Return `path`, or say why nothing could be written there; to be asked before any work.

    Args:
        path: The file to be written.
        overwrite: Whether a file that is there may be replaced.
        suffixes: Those allowed, with the dot and in small letters; none means any.

    Raises:
        ConfigError: The suffix is not one of `suffixes`.
        MediaError: The folder is missing, or cannot be entered or written to, or the file is there.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        wanted = " ".join(suffixes)
        raise ConfigError(f"{path}: ends in {path.suffix or 'no suffix'!r}, want one of {wanted}")
    with refusals(path, "reached"):
        if not path.parent.exists():
            raise MediaError(f"{path}: the folder {path.parent} does not exist; create it first")
        if not path.parent.is_dir():
            raise MediaError(f"{path}: {path.parent} is not a folder")
        if path.is_dir():
            raise MediaError(f"{path}: is a folder, want the name of a file")
        if path.exists() and not path.is_file():
            raise MediaError(f"{path}: not a plain file, cannot be replaced")
        if path.exists() and not overwrite:
            raise MediaError(f"{path}: is there already; pass --overwrite or choose another name")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise MediaError(f"{path}: no permission to write in {path.parent.absolute()}")
    return path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a hidden name beside `path` to write to.

    When the block ends well, the bytes are flushed to the disk and the name becomes `path`.
    On any exception, KeyboardInterrupt and SystemExit too, the hidden file is removed. Only a
    signal that kills the process outright (SIGKILL, SIGTERM unless turned into an exception)
    leaves it behind, as `.NAME.xxxxxxxx.part`.

    Raises:
        MediaError: The operating system refused to write (full disk, permissions).
    """
    hidden = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        yield hidden
        with refusals(path):
            with hidden.open("rb") as file:
                os.fsync(file.fileno())
            hidden.replace(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


@contextmanager
def refusals(path: Path, wish: str = "written") -> Iterator[None]:
    """Turn what the operating system says against a wish into a MediaError.

    Args:
        path: What it is about.
        wish: It is to be `written`; or `reached`, which a folder on the way that may not be entered
            forbids, or a name that is too long.
    """
    try:
        yield
    except OSError as error:
        raise MediaError(f"{path}: cannot be {wish}: {error.strerror or error}") from error


def open_image(path: str | Path) -> Image.Image:
    """Open a picture by Pillow, header only, once its size has been found bearable.

    Raises:
        MediaError: Not a file, not a picture of `FORMATS`, or above `MAX_PIXELS`.
    """
    path = check_input(path)
    try:
        with warnings.catch_warnings():  # a damaged file gets one line, and our limit counts
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=FORMATS)
        pixels = image.width * image.height
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        pixels = int(found.group()) if found else 2 * MAX_PIXELS
    except UnidentifiedImageError as error:
        raise MediaError(f"{path}: {_unidentified(path)}") from error
    except FAULTS as error:
        raise MediaError(f"{path}: damaged picture: {error}") from error
    if pixels > MAX_PIXELS:
        raise MediaError(
            f"{path}: {pixels / 1e6:.0f} megapixels, the limit is {MAX_PIXELS / 1e6:.0f}; "
            "scale it down first"
        )
    return image


def _unidentified(path: Path) -> str:
    """Why a file is no picture of `FORMATS`."""
    with path.open("rb") as file:
        if file.read(4) in TIFF:
            return f"a TIFF with a damaged head, or with floating-point or odd pixels; {DEPTH}"
    wanted = ", ".join(FORMATS)
    return f"not a picture of a kind that is read, or its head is damaged; want {wanted}"


def read_image(path: str | Path, background: tuple[int, int, int] = BACKGROUND) -> Rgb:
    """Read a picture the way a viewer shows it.

    The EXIF rotation is applied, 16 bits become 8 by scaling, an embedded colour profile is
    converted to sRGB, CMYK, grey and palettes become RGB, and of an animation the first frame
    is taken. What is transparent shows `background`, blended on the sRGB values.

    Args:
        path: PNG, JPEG, WebP, GIF, TIFF, BMP or AVIF, told by content and not by suffix.
        background: Red, green, blue, 0..255.

    Returns:
        (H, W, 3) uint8.

    Raises:
        MediaError: Missing, a folder, empty, not a picture, truncated or damaged, of numbers beyond
            16 bits or floating point, or above `MAX_PIXELS` (found from the header, before any
            pixel is decoded).
    """
    with open_image(path) as image:
        try:
            return flatten(image, background)
        except MediaError as error:
            raise MediaError(f"{path}: {error}") from error
        except FAULTS as error:
            reason = str(error) or type(error).__name__
            raise MediaError(f"{path}: truncated or damaged picture: {reason}") from error


def flatten(image: Image.Image, background: tuple[int, int, int] = BACKGROUND) -> Rgb:
    """Turn the current frame of any Pillow image into (H, W, 3) uint8; see `read_image`.

    Raises:
        MediaError: Its numbers are beyond 16 bits, or floating point.
    """
    with warnings.catch_warnings(), _hushed() if image.format == "TIFF" else nullcontext():
        warnings.simplefilter("ignore")
        image.load()
        image = _upright(image)
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise MediaError(f"floating-point pixels; {DEPTH}")
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    if image.mode not in ("RGB", "RGBA", "CMYK"):
        image = image.convert("RGB")
    image = _to_srgb(image)
    if image.mode != "RGBA":
        return np.array(image.convert("RGB"))
    rgba = np.asarray(image).astype(np.uint32)  # (H, W, 4)
    alpha = rgba[..., 3:]
    blend = rgba[..., :3] * alpha + np.array(background, np.uint32) * (255 - alpha)
    return ((blend + 127) // 255).astype(np.uint8)  # (H, W, 3)


@contextmanager
def _hushed() -> Iterator[None]:
    """Let nothing reach stderr, where libtiff itself tells of damage."""
    if sys.__stderr__ is None:  # its number may be that of another file
        yield
        return
    with HUSHED, open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except FAULTS:  # a damaged EXIF block says nothing about the rotation
        return image


def _from_16_bit(image: Image.Image) -> Rgb:
    grey = np.asarray(image).astype(np.int64)  # (H, W); "I" holds 16 bits too
    if grey.min() < 0 or grey.max() > 65535:
        raise MediaError(f"pixels from {grey.min()} to {grey.max()}, want 0 to 65535; {DEPTH}")
    grey = (grey * 255 + 32767) // 65535
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)  # (H, W, 3)


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode=mode)
    except (ImageCms.PyCMSError, *FAULTS):  # unusable profile: as if there were none
        return image
    return converted if converted is not None else image


def write_png(path: str | Path, image: Rgb, overwrite: bool = True) -> None:
    """Write a (H, W, 3) or (H, W) uint8 picture as PNG, whole or not at all.

    Raises:
        ConfigError: The name does not end in .png.
        MediaError: As `check_output` and `atomic`.
        ShapeError: Not a picture.
    """
    path = check_output(path, overwrite, (".png",))
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)):
        raise ShapeError(f"{path}: {image.shape} {image.dtype}, want (H, W[, 3]) uint8")
    with atomic(path) as hidden, refusals(path):
        Image.fromarray(np.ascontiguousarray(image)).save(hidden, format="PNG")


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels inside a picture."""

    top: int
    """Rows above it."""
    left: int
    """Columns left of it."""
    height: int
    """Rows."""
    width: int
    """Columns."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def cut(self, image: Rgb) -> Rgb:
        """The part of (..., H, W, 3) in the box, as a view."""
        rows = slice(self.top, self.top + self.height)
        return image[..., rows, self.left : self.left + self.width, :]


def resize(image: Rgb, size: tuple[int, int]) -> Rgb:
    """Resize (H, W, 3) to `size`, each axis by itself: area average down, bicubic up."""
    import cv2  # 0.1 s

    shrunk = (min(image.shape[0], size[0]), min(image.shape[1], size[1]))
    for target, filter_ in ((shrunk, cv2.INTER_AREA), (size, cv2.INTER_CUBIC)):
        if image.shape[:2] != target:
            image = np.asarray(cv2.resize(image, target[::-1], interpolation=filter_), np.uint8)
    return image


def fit(
    image: Rgb,
    size: tuple[int, int],
    mode: Literal["letterbox", "crop"],
    fill: tuple[int, int, int] = (0, 0, 0),
) -> tuple[Rgb, Box]:
    """Bring a picture to a size without bending it.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) wanted.
        mode: "letterbox" shows all of it, centred, with bars of colour `fill`; "crop" fills
            the size and loses what sticks out, evenly on both sides.
        fill: Colour of the bars.

    Returns:
        (height, width, 3) uint8, and the box in it that shows the picture; `unfit` takes both.
        The box of a crop is all of it.

    Raises:
        ConfigError: Another mode.
        ShapeError: Not a picture, or an empty size.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
        raise ShapeError(f"picture is {image.shape} {image.dtype}, want (H, W, 3) uint8")
    if min(size) < 1:
        raise ShapeError(f"size is {size}, want at least (1, 1)")
    (height, width), (tall, wide) = image.shape[:2], size
    if mode == "crop":
        # the centre of the picture with the aspect of `size`, in whole source pixels
        rows = min(height, max(1, round(width * tall / wide)))
        columns = min(width, max(1, round(height * wide / tall)))
        kept = Box((height - rows) // 2, (width - columns) // 2, rows, columns)
        return resize(np.ascontiguousarray(kept.cut(image)), size), Box(0, 0, tall, wide)
    if mode != "letterbox":
        raise ConfigError(f"fit={mode!r}: want letterbox or crop")
    scale = min(tall / height, wide / width)
    inner = (min(tall, max(1, round(height * scale))), min(wide, max(1, round(width * scale))))
    box = Box((tall - inner[0]) // 2, (wide - inner[1]) // 2, *inner)
    canvas = np.empty((tall, wide, 3), np.uint8)
    canvas[:] = fill
    box.cut(canvas)[:] = resize(image, inner)
    return canvas, box


def unfit(image: Rgb, box: Box, size: tuple[int, int] | None = None) -> Rgb:
    """Undo `fit`: cut the bars off, and resize to `size` where one is given.

    Args:
        image: (H, W, 3) uint8, of the size that was fitted to.
        box: What `fit` gave.
        size: (height, width), for instance of the picture before `fit`; None leaves the scale.
    """
    inner = np.ascontiguousarray(box.cut(image))
    return inner if size is None else resize(inner, size)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Rgb]]], height: int = 192, text_height: int = 20
) -> Rgb:
    """Lay frames out in labelled rows on white.

    Args:
        rows: Label, shown above its row (folded where it is wider than the frames), and the
            frames, (H, W, 3) uint8 of any sizes.
        height: Pixels; every frame is scaled to it.
        text_height: Pixels of a line of text.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ShapeError: There is not one frame.
    """
    gap = 6
    font = ImageFont.load_default(size=text_height)
    strips: list[Rgb] = []
    for _, frames in rows:
        scaled = [
            resize(f, (height, max(1, round(f.shape[1] * height / f.shape[0])))) for f in frames
        ]
        gutter = np.full((height, gap, 3), 255, np.uint8)
        parts = [part for frame in scaled for part in (frame, gutter)]
        strips.append(np.concatenate(parts[:-1], axis=1) if parts else gutter)
    if not any(frames for _, frames in rows):
        raise ShapeError("contact sheet of no frames, want at least one")
    width = max(320, *(strip.shape[1] for strip in strips))
    labels = [_fold(label, font, width) for label, _ in rows]
    line = int(text_height * 1.3)
    tops = [line * (label.count("\n") + 1) if label else 0 for label in labels]
    sheet = Image.new(
        "RGB", (width + 2 * gap, sum(tops) + (height + gap) * len(rows) + gap), "white"
    )
    draw = ImageDraw.Draw(sheet)
    y = gap
    for label, top, strip in zip(labels, tops, strips, strict=True):
        draw.multiline_text((gap, y), label, fill="black", font=font, spacing=line - text_height)
        sheet.paste(Image.fromarray(strip), (gap, y + top))
        y += top + height + gap
    return np.array(sheet)


def _fold(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Break a label into lines of at most `width` pixels, or of single letters."""
    for letters in range(len(label), 0, -1):
        lines = textwrap.wrap(label, letters)
        if all(font.getlength(line) <= width for line in lines):
            return "\n".join(lines)
    return label
