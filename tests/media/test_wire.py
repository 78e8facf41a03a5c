"""What travels between the guard and its child."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pipeline.media import wire
from pipeline.stage import Chunk


def received(chunk: Chunk) -> Chunk:
    stream = io.BytesIO(b"".join(bytes(part) for part in wire.pack_chunk(chunk)))
    header = wire.unpack(stream.read(wire.header_length(stream.read(wire.LENGTH.size))))
    result, arrays = wire.empty_chunk(header)
    for array in arrays:
        array[...] = np.frombuffer(stream.read(array.nbytes), array.dtype).reshape(array.shape)
    assert stream.read() == b""
    return result


def test_a_chunk_arrives_as_it_was_sent() -> None:
    frames = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)[:, ::-1]  # not contiguous
    info = {
        "times": np.array([1.5, -2.5]),
        "none": np.empty(0, np.int64),
        "text": "a\n\udc80",
        "number": 2,
        "nothing": None,
    }
    got = received(Chunk(arrays={"frames": frames}, info=info))
    assert np.array_equal(got.arrays["frames"], frames)
    assert np.array_equal(got.info["times"], info["times"]) and got.info["none"].shape == (0,)
    assert {name: got.info[name] for name in ("text", "number", "nothing")} == {
        "text": "a\n\udc80",
        "number": 2,
        "nothing": None,
    }


@pytest.mark.parametrize(
    "array",
    [
        ["arrays", "frames", "object", [1]],
        ["arrays", "frames", "uint8", [-1]],
        ["arrays", "frames", "uint8", [1 << 40]],
        ["elsewhere", "frames", "uint8", [1]],
    ],
)
def test_arrays_that_no_child_sends_are_refused(array: list[object]) -> None:
    with pytest.raises(wire.WireError):
        wire.empty_chunk({"info": {}, "arrays": [array]})


@pytest.mark.parametrize(
    "header", [{}, {"info": {}, "arrays": [[]]}, {"info": 3, "arrays": []}, {"info": {}, "arrays": 3}]
)
def test_chunks_that_are_none_are_refused(header: dict[str, object]) -> None:
    with pytest.raises(wire.WireError):
        wire.empty_chunk(header)


def test_headers_that_no_child_sends_are_refused() -> None:
    with pytest.raises(wire.WireError, match="bytes"):
        wire.header_length(b"\xff\xff\xff\xff")
    with pytest.raises(wire.WireError, match="not JSON"):
        wire.unpack(b"\x00garbage")
    with pytest.raises(wire.WireError, match="not an object"):
        wire.unpack(b"[1]")
