"""Fixtures of the models' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.models.asked_server import VARIABLE
from tests.models.misbehaving_server import KEY, MisbehavingServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MisbehavingServer]:
    """A server that does what the test tells it, with its key in the environment."""
    monkeypatch.setenv(VARIABLE, KEY)
    with MisbehavingServer() as running:
        yield running
