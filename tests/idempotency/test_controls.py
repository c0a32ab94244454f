"""No row holds of everything: for each there is a server of which it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from naive import FAULTS, place_of
from targets import bare, process

from ports import free_ports
from unspool.testing.idempotency import ASKED, ROWS, Came, Result, Service, check

PARKING = {"H1", "H2", "H3", "H4", "H5", "H7"}
HOLD_OF_NOTHING = {"A10", "A11", "A12", "C6", "C9", "E8", "G3"}
"""Rows that hold where there is no idempotency at all. Other faults find them: see `naive`."""

Found = dict[str, dict[str, Result]]

pytestmark = pytest.mark.timeout(300)
"""The first test waits until every faulty server has been asked its rows."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What came of the rows at each faulty server, and of all at one without a fault."""
    folder = tmp_path_factory.mktemp("naive")
    [port] = free_ports(1)
    words = ("uvicorn", "--log-level", "critical", "--port", str(port), "--factory", "naive:app")
    with process(folder, "naive", port, *words) as url:
        return asyncio.run(_found(url))


async def _found(url: str) -> Found:
    async def one(fault: str) -> dict[str, Result]:
        service = Service(url=f"{url}/{place_of(fault)}")
        results = await check(service, rows=FAULTS[fault])
        return {result.row: result for result in results}

    room = asyncio.Semaphore(6)

    async def bounded(fault: str) -> dict[str, Result]:
        async with room:
            return await one(fault)

    results = await asyncio.gather(*map(bounded, FAULTS))
    return dict(zip(FAULTS, results, strict=True))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault])
def test_a_fault_is_found(fault: str, found: Found) -> None:
    """Each of these rows fails at a server with this mistake."""
    for row in FAULTS[fault]:
        result = found[fault][row]
        assert result.came is Came.FAILED, f"{row} did not find {fault!r}: {result.came}"


def test_a_server_that_is_not_ours_can_pass(found: Found) -> None:
    """The rows ask for what is on the wire, and not for our own software."""
    failed = {row: result.seen for row, result in found[""].items() if result.came is Came.FAILED}
    assert not failed


def test_every_row_can_fail() -> None:
    """M and S alike: a row that nothing can break shows nothing. Section H: see below."""
    broken = {row for rows in FAULTS.values() for row in rows}
    assert set(ASKED) - broken == PARKING


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """A server without any idempotency, asked everything, H rows too."""
    with bare(tmp_path_factory.mktemp("bare")) as target:
        service = Service(url=target.service.url, parks=True, lifetime=True)
        return {result.row: result for result in asyncio.run(check(service))}


@pytest.mark.parametrize("row", ASKED)
def test_a_server_without_idempotency_fails(row: str, nothing: dict[str, Result]) -> None:
    """The positive control."""
    came = nothing[row].came
    if row in HOLD_OF_NOTHING or row == "H5":
        assert came is Came.PASSED
    elif came is Came.NOT_ASKED:
        assert {"required", "short", "odd", "revoke", "effect-raise"} & set(ROWS[row].needs)
    else:
        assert came is Came.FAILED, f"{row} holds where there is nothing"


def test_a_relay_that_repeats_what_it_may_not_fails(tmp_path: Path) -> None:
    """The control of H5: unkeyed requests are saved and sent again."""
    with bare(tmp_path) as behind:
        [port] = free_ports(1)
        words = (
            "unspool", "serve", "--to", behind.service.url, "--listen", f"127.0.0.1:{port}",
            "--repeat", "always", "--survives", "nothing", "--disk-free-min-bytes", "0",
        )  # fmt: skip
        with process(tmp_path, "always", port, *words) as url:
            service = Service(url=url, parks=True, counts=behind.service.url)
            [result] = asyncio.run(check(service, rows={"H5"}))
    assert result.came is Came.FAILED
