"""A failure on its way through Ray as plain values: an exception would arrive as one of Ray's own kind."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from pipeline.engine.task import StageFailed
from pipeline.stage import UserError
from pipeline.store.lock import LockLost

Failure = tuple[str, str, str]
"""Kind, message, trace."""
NO_FAILURE: Failure = ("", "", "")


def failure(err: Exception, where: str) -> Failure:
    """An exception as values. Call while it is handled. `where`: begins the message for what is nobody's mistake."""
    if isinstance(err, UserError):
        return "user", str(err), ""
    if isinstance(err, LockLost):
        return "lock", str(err), ""
    if isinstance(err, StageFailed):
        return "defect", err.message, err.trace
    return "defect", f"{where}: {type(err).__name__}: {err}", traceback.format_exc()


def raise_if(failed: Sequence[str]) -> None:
    kind, message, trace = failed
    if kind == "user":
        raise UserError(message)
    if kind == "lock":
        raise LockLost(message)
    if kind == "defect":
        raise StageFailed(message, trace)
