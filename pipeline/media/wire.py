"""What travels between the guard and its child: a length, a JSON header, then raw array bytes. No pickle.

A header names its arrays as [place, name, dtype, shape]; place is `arrays` or `info` of the Chunk.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stage import Chunk

LENGTH = struct.Struct(">I")
MAX_HEADER_BYTES = 16 << 20
MAX_ARRAY_BYTES = 1 << 30
"""The child decodes what strangers made; a broken child must not make the worker allocate without bound."""

_DTYPES = frozenset({"uint8", "int32", "int64", "float32", "float64"})


class WireError(Exception):
    """The other side sent what no side sends."""


def pack(header: Mapping[str, Any]) -> bytes:
    """Length and JSON of a message without arrays."""
    text = json.dumps(header).encode()
    return LENGTH.pack(len(text)) + text


def pack_chunk(chunk: Chunk) -> list[Any]:
    """Buffers of a chunk's message, to be written one after another."""
    placed = [("arrays", name, array) for name, array in chunk.arrays.items()]
    placed += [("info", name, value) for name, value in chunk.info.items() if isinstance(value, np.ndarray)]
    plain = {name: value for name, value in chunk.info.items() if not isinstance(value, np.ndarray)}
    header = {
        "kind": "chunk",
        "info": plain,
        "arrays": [[place, name, str(array.dtype), list(array.shape)] for place, name, array in placed],
    }
    return [pack(header), *(np.ascontiguousarray(array).reshape(-1).view(np.uint8) for _, _, array in placed)]


def header_length(prefix: bytes) -> int:
    """Bytes of the header that follows. Raises WireError."""
    (length,) = LENGTH.unpack(prefix)
    if not 0 < length <= MAX_HEADER_BYTES:
        raise WireError(f"header of {length} bytes")
    return int(length)


def unpack(text: bytes | bytearray) -> dict[str, Any]:
    """A header. Raises WireError."""
    try:
        header = json.loads(text)
    except ValueError as error:
        raise WireError(f"header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise WireError("header is not an object")
    return header


def empty_chunk(header: Mapping[str, Any]) -> tuple[Chunk, list[NDArray[Any]]]:
    """The chunk of a header, and its arrays in the order in which their bytes follow. Raises WireError."""
    try:
        chunk = Chunk(arrays={}, info=dict(header["info"]))
        arrays = [_place(chunk, *described) for described in header["arrays"]]
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"a chunk's header is not one: {error!r}") from error
    return chunk, arrays


def _place(chunk: Chunk, place: str, name: str, dtype: str, shape: list[int]) -> NDArray[Any]:
    """Put an empty array where it belongs. Raises WireError."""
    if place not in ("arrays", "info") or dtype not in _DTYPES or any(n < 0 for n in shape):
        raise WireError(f"array {place}.{name} of {dtype} {shape}")
    if math.prod(shape) * np.dtype(dtype).itemsize > MAX_ARRAY_BYTES:
        raise WireError(f"array {place}.{name} of {dtype} {shape} is too large")
    array: NDArray[Any] = np.empty(shape, dtype)
    (chunk.arrays if place == "arrays" else chunk.info)[name] = array
    return array
