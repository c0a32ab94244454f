"""What a reader with hostile eyes found, so that it stays found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from kit import OK, REFUSED, RESET, Service, Still, has, node, says, told, value

from unspool.core.lane import Conduct
from unspool.core.lifecycle import State
from unspool.core.message import Request, Response
from unspool.errors import Unavailable
from unspool.spools.memory import MemorySpool
from unspool.spools.protocol import Acceptance, Entry
from unspool.transports.servers import Servers


async def test_a_reset_at_the_second_server_is_not_forgotten() -> None:
    """The first server says 429, the second resets: a POST without a key may not go out again."""
    servers = Servers(
        [Service(says(429)), Service(RESET)], clock=Still(), conduct=Conduct(), chance=lambda: 0.5
    )
    async with node(service=servers) as it:
        response = await it.ask()
        assert response.status == 502
        assert it.kept == []


async def test_a_claim_that_was_taken_over_promises_nothing() -> None:
    """Its first owner is told to ask again: a 202 would promise what somebody else may drop."""
    spool, clock = MemorySpool(), Still()
    gate = asyncio.Event()

    async def late(_: Request) -> Response:
        await gate.wait()
        return says(503)

    async with node(late, spool=spool, clock=clock, claims=True) as one:
        first = asyncio.create_task(one.ask(key="k1"))
        while not one.service.attempts:
            await asyncio.sleep(0.001)
        [claim] = one.kept
        taken = msgspec.structs.replace(claim, attempt=claim.attempt + 1)
        spool.entries[claim.message.key] = taken
        gate.set()
        response = await first
        assert response.status == 409
        assert one.kept[0].state is State.CLAIMED


async def test_a_claim_is_not_outlived_by_its_attempt() -> None:
    """When the claim is about to lapse the attempt is given up: another may begin (I4)."""

    async def for_ever(_: Request) -> Response:
        await asyncio.Event().wait()
        return OK

    clock = Still()

    class Slow(MemorySpool):
        """Takes so long that of the claim's 20 s little is left."""

        async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
            answers = await super().accept(entries)
            clock.at += 17_900
            return answers

    async with node(for_ever, spool=Slow(), clock=clock, claims=True, lease_ms=20_000) as it:
        response = await asyncio.wait_for(it.ask(key="k1"), 15)
        assert response.status == 202, "keyed, so it may be repeated: saved"


async def test_repeats_at_once_of_an_answered_key_all_get_its_answer() -> None:
    """Looking a key up is not trying it: nobody is told to come back."""
    async with node() as it:
        await it.ask(key="k1")
        answers = await asyncio.gather(*(it.ask(key="k1") for _ in range(8)))
        assert {a.status for a in answers} == {201}
        wrong, right = await asyncio.gather(it.ask(key="k1", body=b"other"), it.ask(key="k1"))
        assert (wrong.status, right.status) == (422, 201)
        assert len(it.service.attempts) == 1


async def test_a_repeat_of_what_is_saved_does_not_wait_with_the_first() -> None:
    """While the first waits for the real answer under Prefer: wait, a repeat gets the receipt."""
    async with node(says(503)) as it:
        patient = asyncio.create_task(
            it.ask(b"POST", b"/orders", (b"Prefer", b"wait=30"), key="k1")
        )
        while not it.kept:
            await asyncio.sleep(0.001)
        async with asyncio.timeout(60):  # it is kept a moment before its sender's turn ends
            while (again := await it.ask(key="k1")).status == 409:
                await asyncio.sleep(0.001)
        assert again.status == 202
        assert not patient.done()
        it.node.hurry()
        assert (await patient).status == 202


async def test_saved_is_saved_whatever_happens_to_the_look_up() -> None:
    """A sender whose message is in the spool is never told that it was not taken."""

    class Forgetful(MemorySpool):
        async def find(self, keys: object, /) -> object:
            raise Unavailable("The spool does not answer.")

    async with node(REFUSED, spool=Forgetful()) as it:
        response = await it.ask(b"PUT", b"/o", (b"Prefer", b"wait=1"))
        assert response.status == 202
        assert len(it.kept) == 1


async def test_nothing_is_sent_long_after_its_deadline() -> None:
    """Down for hours: what was only wanted within a minute bounces without an attempt (I2)."""
    async with node() as it:
        response = await it.ask(
            b"POST", b"/o", (b"Unspool-Lifetime", b"60"), (b"Prefer", b"respond-async"), key="k1"
        )
        it.clock.at += 3 * 3600 * 1000
        await it.deliver()
        now = told(await it.receipt(response))
        assert (now["state"], now["reason"]) == ("bounced", "expired")
        assert it.service.attempts == []


async def test_a_large_keyed_body_says_that_its_key_is_not_kept() -> None:
    class Rest:
        async def read(self) -> bytes:
            return b""

        def close(self) -> None:
            pass

    async with node() as it:
        response = await it.ask(key="k1", rest=Rest())
        assert value(response, b"idempotency-stored") == b"false"
        assert not has(await it.ask(key="k2"), b"idempotency-stored")


async def test_a_lifetime_of_many_digits_is_refused() -> None:
    async with node() as it:
        long = (b"Unspool-Lifetime", b"000000000001" + b"0" * 5000)
        assert (await it.ask(b"POST", b"/o", long)).status == 400
