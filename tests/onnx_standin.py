"""Writes ONNX files that answer the same to any picture: stand-ins for detectors and pose models.

Only what such a file needs of the format (onnx.proto3, protobuf's wire format) is here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FLOAT, INT_VERSION, OPSET = 1, 8, 13


def write_constant_model(path: Path, size: tuple[int, int], outputs: list[np.ndarray]) -> Path:
    """A model that takes (1, 3, height, width) floats and gives the outputs, whatever it sees."""
    names = [f"out{k}" for k in range(len(outputs))]
    graph = b"".join(
        _field(1, _field(1, f"kept{k}") + _field(2, name) + _field(4, "Identity"))
        for k, name in enumerate(names)
    )
    graph += _field(2, "standin")
    graph += b"".join(_field(5, _tensor(f"kept{k}", x)) for k, x in enumerate(outputs))
    graph += _field(11, _value("picture", (1, 3, *size)))
    graph += b"".join(_field(12, _value(n, x.shape)) for n, x in zip(names, outputs, strict=True))
    opset = _field(1, "") + _number(2, OPSET)
    path.write_bytes(_number(1, INT_VERSION) + _field(8, opset) + _field(7, graph))
    return path


def _tensor(name: str, value: np.ndarray) -> bytes:
    dims = b"".join(_number(1, side) for side in value.shape)
    return dims + _number(2, FLOAT) + _field(8, name) + _field(9, value.astype("<f4").tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _number(1, side)) for side in shape)
    return _field(1, name) + _field(2, _field(1, _number(1, FLOAT) + _field(2, dims)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])
