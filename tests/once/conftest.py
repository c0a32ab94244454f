"""One PostgreSQL for all tests of this folder, and a clean database of each kind for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.postgres import Postgres, postgres

from .kinds import KINDS, Kind, Place


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    """Each kind of session there is, on a database with an empty table `orders`."""
    made = KINDS[request.param]
    needs = request.getfixturevalue("server") if made.engine == "postgresql" else None
    place = Place.fresh(tmp_path, needs)
    found = made(place)
    yield found
    found.close()
