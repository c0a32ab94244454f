"""Several servers for one destination: tried in order, each with a weather of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from kit import OK, REFUSED, RESET, SLOW, Service, has, node, says

from unspool.core.lane import PROBE_FIRST_MS, Conduct
from unspool.core.message import Answer, Failure, Request, Response, Sent
from unspool.testing.clock import VirtualClock, virtually
from unspool.transports.servers import Servers

ASKED = Request(b"POST", b"/", ((b"Host", b"x"),), b"body")


class Rest:
    """An answer's body that is still on its way."""

    def __init__(self) -> None:
        self.closed = False

    async def read(self) -> bytes:
        return b""

    def close(self) -> None:
        self.closed = True


def several(*answers: Answer) -> tuple[Servers, list[Service]]:
    services = [Service(answer) for answer in answers]
    servers = Servers(services, clock=VirtualClock(), conduct=Conduct(), chance=lambda: 0.5)
    return servers, services


def asked(services: Sequence[Service]) -> list[int]:
    return [len(service.attempts) for service in services]


@virtually
async def test_the_first_is_the_one_we_want() -> None:
    """While it answers, nobody else is asked."""
    servers, services = several(OK, OK)
    for _ in range(5):
        assert await servers.attempt(ASKED, repeat=True) == OK
    assert asked(services) == [5, 0]


@pytest.mark.parametrize("first", [REFUSED, RESET, SLOW, says(500), says(503), says(429)])
@virtually
async def test_another_is_tried_where_the_request_may_be_repeated(first: Answer) -> None:
    """An ERROR of the first is not the sender's, as long as somebody else answers."""
    servers, services = several(first, OK)
    assert await servers.attempt(ASKED, repeat=True) == OK
    assert asked(services) == [1, 1]


@pytest.mark.parametrize("first", [RESET, SLOW, says(500), says(503)])
@virtually
async def test_what_may_have_been_applied_is_not_sent_to_another(first: Answer) -> None:
    """Without a key, the second server would be the second effect."""
    servers, services = several(first, OK)
    assert await servers.attempt(ASKED, repeat=False) == first
    assert asked(services) == [1, 0]


@pytest.mark.parametrize("first", [REFUSED, says(429), says(421)])
@virtually
async def test_what_was_not_processed_is_sent_to_another_whatever_it_is(first: Answer) -> None:
    """Nothing was applied, so nothing is repeated."""
    servers, services = several(first, OK)
    assert await servers.attempt(ASKED, repeat=False) == OK
    assert asked(services) == [1, 1]


@pytest.mark.parametrize("first", [says(404), says(301), says(501)])
@virtually
async def test_an_answer_that_stands_is_not_asked_for_twice(first: Answer) -> None:
    """4xx is an answer: another server would only say the same."""
    servers, services = several(first, OK)
    assert await servers.attempt(ASKED, repeat=True) == first
    assert asked(services) == [1, 0]


@virtually
async def test_with_no_answer_anywhere_the_best_that_is_true_comes_back() -> None:
    """A response before a failure; the last of each; and "maybe applied" if it may have been."""
    servers, _ = several(REFUSED, says(503), REFUSED)
    answer = await servers.attempt(ASKED, repeat=True)
    assert isinstance(answer, Response)
    assert answer.status == 503
    servers, _ = several(RESET, REFUSED)
    answer = await servers.attempt(ASKED, repeat=True)
    assert isinstance(answer, Failure)
    assert answer.sent is Sent.MAYBE
    servers, _ = several(REFUSED, REFUSED)
    answer = await servers.attempt(ASKED, repeat=True)
    assert isinstance(answer, Failure)
    assert answer.sent is Sent.NEVER


@virtually
async def test_a_body_that_streams_is_sent_once() -> None:
    """It cannot be read a second time."""
    servers, services = several(REFUSED, OK)
    streams = Request(b"POST", b"/", (), b"", Rest())
    assert await servers.attempt(streams, repeat=True) == REFUSED
    assert asked(services) == [1, 0]


@virtually
async def test_an_answer_that_nobody_will_read_is_given_up() -> None:
    """Its connection would wait for a reader for ever."""
    first, second = Rest(), Rest()
    servers, _ = several(
        Response(503, b"", (), b"", first), Response(502, b"", (), b"", second), OK
    )
    await servers.attempt(ASKED, repeat=True)
    assert first.closed
    assert second.closed
    kept = Rest()
    servers, _ = several(Response(503, b"", (), b"", kept), REFUSED)
    await servers.attempt(ASKED, repeat=True)
    assert not kept.closed


@virtually
async def test_a_server_that_is_down_costs_nothing_and_is_probed() -> None:
    """After a failed cohort the second is asked at once; the first again when its probe is due,
    and for good when it answers."""
    servers, services = several(REFUSED, OK)
    for _ in range(20):
        assert await servers.attempt(ASKED, repeat=True) == OK
    assert asked(services) == [5, 20]
    await asyncio.sleep(PROBE_FIRST_MS / 1000)
    for _ in range(3):
        assert await servers.attempt(ASKED, repeat=True) == OK
    assert asked(services) == [6, 23]
    services[0].then(OK)
    await asyncio.sleep(2 * PROBE_FIRST_MS / 1000)
    for _ in range(3):
        assert await servers.attempt(ASKED, repeat=True) == OK
    assert asked(services) == [9, 23]


@virtually
async def test_a_probe_that_was_not_needed_is_not_taken() -> None:
    """The second was down, is due for a probe, and nobody needs it; when the first goes down, it
    must be there to be tried."""
    servers, services = several(REFUSED, REFUSED)
    for _ in range(20):
        await servers.attempt(ASKED, repeat=True)
    services[0].then(OK)
    services[1].then(OK)
    await asyncio.sleep(60)
    for _ in range(20):
        assert await servers.attempt(ASKED, repeat=True) == OK
    before = asked(services)[1]
    services[0].then(REFUSED)
    assert await servers.attempt(ASKED, repeat=True) == OK
    assert asked(services)[1] == before + 1


@virtually
async def test_when_all_are_closed_the_first_is_tried_all_the_same() -> None:
    """Whether there is an attempt at all is for the lane of the destination to say."""
    servers, services = several(REFUSED, REFUSED)
    for _ in range(50):
        assert isinstance(await servers.attempt(ASKED, repeat=True), Failure)
    assert asked(services) == [50, 5]


@virtually
async def test_a_relay_fails_over_and_the_sender_does_not_notice() -> None:
    """A keyed POST to a dead first server is answered by the second, in the same call."""
    servers, services = several(REFUSED, OK)
    async with node(clock=VirtualClock(), service=servers) as it:  # type: ignore[arg-type]
        answer = await it.ask(key="k")
        assert answer.status == OK.status
        assert not has(answer, b"proxy-status")
        assert has(await it.ask(key="k"), b"idempotent-replayed")
    assert asked(services) == [1, 1]


@virtually
async def test_every_server_is_closed_with_the_destination() -> None:
    """Nobody's idle connections are forgotten."""

    class Closing(Service):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    services = [Closing(OK), Closing(OK)]
    await Servers(services, clock=VirtualClock(), conduct=Conduct()).aclose()
    assert [service.closed for service in services] == [True, True]
