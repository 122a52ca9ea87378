"""How long a media file says it is: finds truncated ones exactly, without decoding.

Only the outermost structure is walked: boxes (ISO 14496-12), the EBML segment (RFC 8794),
the RIFF chunk, GIF89a blocks.
"""

import struct
from typing import BinaryIO


def declared_size(file: BinaryIO) -> int:
    """Bytes a file should have by its own outermost headers; 0 where they do not say.

    Args:
        file: Open for reading and seeking; left anywhere.

    Returns:
        The end of the last box of an mp4 or mov, of the segment of a mkv or webm, of the RIFF
        chunk of an avi or webp, of the trailer of a gif. Never more than is sure: bytes after
        it are nobody's business, live recordings declare nothing.
    """
    file.seek(0)
    head = file.read(16)
    if head.startswith(b"GIF8"):
        return _end_of_gif(file)
    if head.startswith(b"RIFF"):  # avi, webp
        return 8 + int(struct.unpack("<I", head[4:8])[0])
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _end_of_matroska(file)
    return _end_of_boxes(file)


def _end_of_boxes(file: BinaryIO) -> int:
    """End of the last box of an mp4 or mov that matters; what follows may be anything."""
    declared = offset = 0
    while True:
        file.seek(offset)
        head = file.read(16)
        if len(head) < 8:
            return declared
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if size < 8:  # 0: up to the end of the file, whatever that is
            return declared
        offset += size
        if kind in (b"moov", b"mdat", b"moof"):
            declared = offset


def _end_of_matroska(file: BinaryIO) -> int:
    file.seek(4)
    header = _vint(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    segment = _vint(file)
    return 0 if segment is None else file.tell() + segment


def _vint(file: BinaryIO) -> int | None:
    """A length of EBML; None where it is unknown (live recordings) or cut off."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + rest, "big")
    unknown = (1 << 7 * (extra + 1)) - 1
    return None if len(rest) < extra or value == unknown else value


def _end_of_gif(file: BinaryIO) -> int:
    """Walk the blocks up to the trailer; one byte more than there are when it is missing."""
    file.seek(10)
    flags = file.read(3)
    _skip_palette(file, flags[:1])
    while True:
        kind = file.read(1)
        if kind == b";":
            return file.tell()
        if kind == b"!":
            file.seek(1, 1)
        elif kind == b",":
            _skip_palette(file, file.read(9)[8:])
            file.seek(1, 1)
        elif kind != b"\0":  # stray zeros between blocks are common
            return file.seek(0, 2) + 1
        else:
            continue
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], 1)


def _skip_palette(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, 1)
