"""Which codecs this machine's libav has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def missing_codecs(names: Sequence[str], mode: Literal["r", "w"]) -> list[str]:
    """Those of the named codecs that cannot be decoded (mode r) or encoded (w) here."""
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    missing = []
    for name in names:
        try:
            Codec(name, mode)
        except UnknownCodecError:
            missing.append(name)
    return missing
