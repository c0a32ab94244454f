"""One program that has everything imported, for each test that forks processes from it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from crash.launch import Quick

from .fleet import quick


@pytest.fixture
async def launcher() -> AsyncIterator[Quick]:
    launcher = quick()
    yield launcher
    await launcher.end()
