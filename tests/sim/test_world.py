"""Simulation: senders, weather and crashes from fixed seeds; checkers outside the code judge.

A failing seed prints its complaints and the last events; `story(seed)` runs it again, the same.
Half of the file proves the checkers: systems that are wrong on purpose must be complained of.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import msgspec
import pytest
from checks import Rules, complaints
from msgspec.structs import replace

from unspool.core.lane import Conduct
from unspool.core.lifecycle import State, Verdict
from unspool.core.message import Answer, Destination, Field, Instant, Request, Response, Value
from unspool.node import Plan
from unspool.passage import Options
from unspool.spools.memory import MemorySpool, after_verdict
from unspool.spools.protocol import Acceptance, Entry, LaneDue, Lease, New
from unspool.testing.clock import VirtualClock, run
from unspool.testing.door import Trouble
from unspool.testing.world import FAIR, Event, History, Site, Weather, World, field, post
from unspool.transports.protocol import Transport

HOME = Destination("http://site.test")
PLAN = Plan(options=Options(destination=HOME, via="unspool"))
SEEDS = range(60)
CALLERS = (b"Bearer ann", b"Bearer bob", b"")


class Case(Value, frozen=True):
    """What a seed draws, or a test says: which faults there are, and how much work."""

    weather: Weather = FAIR
    trouble: Trouble = Trouble()
    kills: int = 0
    works: int = 24
    span_s: float = 240.0
    plan: Plan = PLAN
    short_lives: bool = False
    aloof: bool = False
    """Every sender asks with Prefer: respond-async."""
    watched: bool = False
    """Every sender looks at its receipts again and again."""


def drawn(random: Random) -> Case:
    """Each fault is there in half of the worlds, so that rare pairs get whole runs."""

    def maybe(most: float) -> float:
        return random.uniform(0, most) if random.random() < 0.5 else 0.0

    statuses = {status: maybe(0.15) for status in (500, 502, 503, 429, 408, 404)}
    if random.random() < 0.2:
        statuses[503] = 0.7
    weather = Weather(
        statuses=statuses,
        refused=random.choice([0.0, maybe(0.2), 0.9]),
        reset_before=maybe(0.15),
        reset_after=maybe(0.15),
        slow=maybe(0.3),
        quick_ms=random.choice([40, 40, 3_000]),
        retry_after_s=random.choice([1, 20, 90]),
    )
    trouble = Trouble(
        pause_ms=random.choice([0, 5, 300]),
        fails_before=maybe(0.1),
        fails_after=maybe(0.1),
        late_settle=maybe(0.02),
    )
    return Case(
        weather=weather,
        trouble=trouble,
        kills=random.choice([0, 1, 4, 8]),
        works=random.choice([8, 24, 48]),
        short_lives=random.random() < 0.3,
        plan=replace(PLAN, options=replace(PLAN.options, claims=random.random() < 0.4)),
    )


# --- senders ------------------------------------------------------------------------------------


class Work(Value, frozen=True):
    """One thing a sender wants done."""

    body: bytes
    fields: tuple[Field, ...]
    method: bytes
    keyed: bool

    @property
    def request(self) -> Request:
        return post(self.body, *self.fields, method=self.method)


def work(random: Random, number: int, case: Case) -> Work:
    who = random.choice(CALLERS)
    kind = random.choices(["keyed", "bare", "put"], [7, 2, 1])[0]
    fields: list[Field] = []
    if who:
        fields.append((b"Authorization", who))
    if kind == "keyed":
        # Callers share names of keys, and often only one of them uses it.
        fields.append((b"Idempotency-Key", b'"%b-%d"' % (b"k", number // 2)))
    wish = random.choice([b"", b"", b"wait=3", b"wait=30", b"respond-async"])
    if case.aloof:
        wish = b"respond-async"
    if wish:
        fields.append((b"Prefer", wish))
    if case.short_lives and random.random() < 0.5:
        fields.append((b"Unspool-Lifetime", b"%d" % random.choice([1, 30, 120])))
    method = b"PUT" if kind == "put" else b"POST"
    return Work(b"work-%d" % number, tuple(fields), method, kind == "keyed")


class Sender:
    """Sends a work until it is taken, repeats it, reuses its key, watches and cancels it."""

    def __init__(self, world: World, random: Random, *, watches: bool) -> None:
        self.world = world
        self.watches = watches
        self.random = random
        self.receipts: set[bytes] = set()

    async def send(self, request: Request, *, again: bool) -> None:
        for _ in range(8 if again else 1):
            answer = await self.world.ask(request)
            where = None if answer is None else field(answer, b"Location")
            if answer is not None and answer.status == 202 and where is not None:
                self.receipts.add(where)
            if answer is not None and answer.status not in (408, 409, 429, 500, 502, 503, 504):
                return
            await asyncio.sleep(self.random.uniform(0.5, 30))

    async def do(self, work: Work, start_s: float) -> None:
        random = self.random
        await asyncio.sleep(start_s)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.send(work.request, again=work.keyed or work.method == b"PUT"))
            for _ in range(random.randrange(3) if work.keyed else 0):
                group.create_task(self.later(work.request))
            if work.keyed and random.random() < 0.2:
                group.create_task(self.later(replace(work.request, body=work.body + b"-other")))
        for where in sorted(self.receipts):
            if random.random() < 0.15:
                await self.world.ask(Request(b"DELETE", where, [], b""))
            await self.look(where)
            for _ in range(40 if self.watches else 0):
                await asyncio.sleep(10)
                await self.world.ask(Request(b"GET", where, [], b""))
            await asyncio.sleep(random.uniform(0, 600))
            await self.look(where)

    async def later(self, request: Request) -> None:
        """The same key once more, at once or much later, spelled as another library would."""
        await asyncio.sleep(self.random.choice([0.0, 0.01, 1, 60, 200]))
        fields = [
            (name, value.strip(b'"') if name == b"Idempotency-Key" else value)
            for name, value in request.fields
        ]
        await self.send(replace(request, fields=fields), again=self.random.random() < 0.5)

    async def look(self, where: bytes) -> None:
        for wait in (b"", b"?wait=20"):
            await self.world.ask(Request(b"GET", where + wait, [], b""))
            await self.world.ask(Request(b"GET", where + b"/response", [], b""))


class Watched(History):
    """A history that tells when something of a kind has happened."""

    wanted: str = ""
    happened: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    def note(self, what: str, **more: Any) -> None:
        super().note(what, **more)
        if what == self.wanted:
            self.happened.set()

    async def one(self, what: str, *, within_s: float) -> None:
        """Return at the next of this kind, or when the time is up."""
        self.wanted = what
        self.happened.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.happened.wait()


async def nemesis(world: World, random: Random, case: Case, history: Watched) -> None:
    """kill -9: at any moment, or just behind something that may be half done; then up again."""
    for _ in range(case.kills):
        await asyncio.sleep(random.uniform(0, case.span_s / max(1, case.kills)))
        if random.random() < 0.8:
            what = random.choice(["asked", "began", "began", "applied", "ended"])
            await history.one(what, within_s=20)
            await asyncio.sleep(random.choice([0.0, 0.001, 0.01, 0.05]))
        world.kill()
        await asyncio.sleep(random.choice([0.0, 1.0, 40.0]))
        await world.up()


Makes = Callable[[Transport], Transport]


async def tell(
    seed: int,
    case: Case | None = None,
    *,
    spool: MemorySpool | None = None,
    transport: Makes | None = None,
) -> list[Event]:
    """A whole life of a world: work in bad weather, then peace, then an audit of every receipt."""
    random = Random(seed)
    case = case or drawn(random)
    history = Watched(VirtualClock())
    site = Site(case.weather, random=random, history=history)
    world = World(
        case.plan, transport=transport(site) if transport else site, spool=spool or MemorySpool(),
        history=history, random=random, trouble=case.trouble,
    )  # fmt: skip
    await world.up()
    senders = [Sender(world, random, watches=case.watched) for _ in range(case.works)]
    async with asyncio.TaskGroup() as group:
        group.create_task(nemesis(world, random, case, history))
        for number, sender in enumerate(senders):
            one = work(random, number, case)
            group.create_task(sender.do(one, random.uniform(0, case.span_s)))
    await world.up()
    site.weather = FAIR
    world.heal()
    await asyncio.sleep(3 * 3600)
    for where in sorted({where for sender in senders for where in sender.receipts}):
        for request in (
            Request(b"GET", where, [], b""),
            Request(b"GET", where + b"/response", [], b""),
        ):
            await world.ask(request)
    world.kill()
    await asyncio.sleep(0)
    return history.events


def story(seed: int, case: Case | None = None, **more: object) -> list[Event]:
    return run(tell(seed, case, **more))  # type: ignore[arg-type]


@functools.cache
def of_seed(seed: int) -> list[Event]:
    """Told once, and looked at by several tests."""
    return story(seed)


def told(events: Sequence[Event], count: int = 40) -> str:
    """The last events, for a person with a failing seed."""
    lines = []
    for event in events[-count:]:
        request, answer = event.request, event.answer
        lines.append(
            f"{event.at - events[0].at:>9} {event.what:9} ask={event.ask} attempt={event.attempt} "
            f"{request and (request.method, request.target[:60], request.body)} "
            f"{getattr(answer, 'status', answer)}"
        )
    return "\n".join(lines)


# --- the system keeps its promises --------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_no_promise_is_broken_in_any_weather(seed: int) -> None:
    """I1 to I10: nothing answered 202 is lost, each key has one effect and one answer, no attempt
    comes too early or beyond the window, and delivered means that the destination answered."""
    events = of_seed(seed)
    found = complaints(events)
    assert not found, "\n".join([f"seed {seed}", *found, told(events)])


def test_the_seeds_see_all_there_is_to_see() -> None:
    """A simulation that never crashes in the right place proves nothing: what must have happened
    somewhere did happen."""
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        for event in of_seed(seed):
            seen[event.what] += 1
            answer = event.answer
            if event.what == "answered" and isinstance(answer, Response):
                seen[f"status {answer.status}"] += 1
                seen["replayed"] += field(answer, b"Idempotent-Replayed") is not None
                if event.request is not None and event.request.method == b"DELETE":
                    seen[f"cancel {answer.status}"] += 1
                for reason in (b"expired", b"unknown", b"cancelled"):
                    seen[reason.decode()] += b'"reason":"%b"' % reason in answer.body
    for what in (
        "killed", "broke", "cut", "applied", "status 200", "status 201", "status 202", "status 404",
        "status 409", "status 410", "status 422", "status 500", "status 502", "status 503",
        "replayed", "cancel 200", "cancel 409", "expired", "unknown", "cancelled",
    ):  # fmt: skip
        assert seen[what] > 0, f"no seed shows {what}: {seen}"
    assert seen["status 202"] > 200
    assert seen["killed"] > 100
    assert seen["cut"] > 20


def test_the_same_seed_tells_the_same_story() -> None:
    """A failure can be run again, event by event."""
    for seed in (3, 17):
        assert story(seed) == of_seed(seed)


# --- the checkers can tell ----------------------------------------------------------------------

BAD: Mapping[int, float] = {500: 0.2, 503: 0.1, 502: 0.1}
STORM = Case(weather=Weather(statuses=BAD, reset_after=0.2, refused=0.1), kills=3)


def caught(case: Case, what: str = "", **more: Callable[[], object]) -> str:
    """What is complained of in a few worlds like this, each with faulty parts of its own; up to
    the first complaint that begins like `what`."""
    found: list[str] = []
    for seed in range(16 if what else 4):
        parts = {name: make() for name, make in more.items()}
        found += complaints(story(seed, case, **parts))
        if what and any(complaint.startswith(what) for complaint in found):
            return what
    return "\n".join(found)


def test_a_sound_system_is_not_complained_of_in_the_worlds_of_the_mutants() -> None:
    """Without this, a checker that always complains would pass for a good one."""
    for case in (STORM, FLOOD, CROWDED, DEAD):
        assert caught(case) == ""


class Liar:
    """A transport that says "created" without sending, now and then."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.count = 0

    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        self.count += 1
        if self.count % 5 == 0:
            return Response(status=201, reason=b"Created", fields=[], body=b"as if by me,")
        return await self.inner.attempt(request, repeat=repeat)

    async def aclose(self) -> None:
        await self.inner.aclose()


def test_a_transport_that_claims_what_it_did_not_do_is_caught() -> None:
    """I6: delivered means that the destination answered."""
    assert caught(STORM, "I6 from nowhere", transport=lambda: Liar) == "I6 from nowhere"


class Twice(Liar):
    """A transport that sends everything twice, under a key of its own the second time."""

    async def attempt(self, request: Request, /, *, repeat: bool) -> Answer:
        fields = [f for f in request.fields if f[0] != b"Idempotency-Key"]
        again = replace(request, fields=[*fields, (b"Idempotency-Key", b"%d" % self.count)])
        self.count += 1
        await self.inner.attempt(again, repeat=repeat)
        return await self.inner.attempt(request, repeat=repeat)


def test_a_transport_that_changes_the_key_is_caught() -> None:
    """I9: the key is the sender's, at every attempt."""
    assert caught(STORM, "I9 2 effects", transport=lambda: Twice) == "I9 2 effects"


class Hasty(MemorySpool):
    """A spool that says "accepted" and writes a little later: 202 before custody."""

    def __init__(self) -> None:
        super().__init__()
        self.writing: set[asyncio.Task[object]] = set()

    async def accept(self, entries: Sequence[Entry], /) -> Sequence[Acceptance]:
        known = await self.find([entry.message.key for entry in entries])
        if any(known) or any(entry.state is not State.WAITING for entry in entries):
            return await super().accept(entries)
        task: asyncio.Task[object] = asyncio.ensure_future(self._write(entries))
        self.writing.add(task)
        return [New(entry) for entry in entries]

    async def _write(self, entries: Sequence[Entry]) -> None:
        await asyncio.sleep(20)
        await super().accept(entries)


def test_a_202_before_the_spool_has_it_is_caught() -> None:
    """I1: what a crash takes away was never accepted."""
    assert caught(replace(STORM, kills=12), "I1 lost", spool=Hasty) == "I1 lost"


class Fenceless(MemorySpool):
    """A spool whose settle asks neither for the lease nor for the state."""

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        for lease, verdict in settlements:
            key = lease.entry.message.key
            entry = self.entries.get(key)
            after = entry and after_verdict(replace(entry, message=lease.entry.message), verdict)
            if after is not None:
                self.entries[key] = after
        self._arrivals.ring()
        return [True for _ in settlements]


LATE = Case(
    weather=Weather(statuses=BAD, reset_after=0.2),
    trouble=Trouble(late_settle=0.2),
    kills=8,
    works=40,
    aloof=True,
    watched=True,
)
"""Settles that are under way for longer than their leases."""


def test_a_settle_under_a_lost_lease_that_counts_is_caught() -> None:
    """I3: what has ended stays as it is."""
    assert caught(LATE, "I3 ", spool=Fenceless) == "I3 "


class Numberless(MemorySpool):
    """A spool that asks whether a message has ended, and not whose lease it is in."""

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        kept: list[bool] = []
        for lease, verdict in settlements:
            entry = self.entries.get(lease.entry.message.key)
            number = lease.entry.attempt if entry is None else entry.attempt
            now = replace(lease, entry=replace(lease.entry, attempt=number))
            kept += await super().settle([(now, verdict)])
        return kept


CROWDED = replace(
    LATE, kills=14, watched=False, weather=replace(LATE.weather, slow=1.0, slow_ms=80_000)
)
"""The same, where attempts take nearly as long as their leases."""


def test_a_late_settle_that_ends_somebody_elses_lease_is_caught() -> None:
    """I4: the attempt number is the token, or two attempts are under way at once."""
    assert caught(CROWDED, "I4 ", spool=Numberless) == "I4 "


class Eager(MemorySpool):
    """A spool that thinks everything is due."""

    async def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        lanes = await super().survey(after=after, limit=limit)
        return [LaneDue(lane.destination, Instant(0)) for lane in lanes]

    async def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> Sequence[Lease]:
        free = {key: e for key, e in self.entries.items() if e.leased_until <= now}
        for key, entry in free.items():
            if entry.state is State.WAITING:
                self.entries[key] = replace(entry, due_at=Instant(0))
        return await super().lease(wants, now=now, until=until)


def test_an_attempt_before_its_time_is_caught() -> None:
    """I8: none before due_at."""
    assert caught(STORM, "I8 too soon", spool=Eager) == "I8 too soon"


FLOOD = Case(weather=Weather(slow=1.0, slow_ms=60_000), works=90, span_s=2.0, aloof=True)


def test_a_dispatcher_with_a_wider_window_than_it_may_have_is_caught() -> None:
    """I7: attempts in flight never exceed the window."""
    wide = replace(FLOOD, plan=replace(PLAN, conduct=Conduct(window_start=60, window_max=60)))
    assert caught(wide, "I7 ") == "I7 "


DEAD = Case(weather=Weather(refused=1.0), works=30, span_s=60.0)


def test_a_lane_that_never_closes_is_caught() -> None:
    """I8: a dead destination costs a probe now and then, and nothing more."""
    stubborn = replace(DEAD, plan=replace(PLAN, conduct=Conduct(cohort_max=10_000.0)))
    assert caught(stubborn, "I8 while closed") == "I8 while closed"


def test_a_relay_that_knows_no_scope_is_caught() -> None:
    """I10: with one scope for all, somebody is refused for a key that another used."""
    options = replace(PLAN.options, scope_fields=())
    plan = replace(PLAN, options=options)
    assert caught(replace(STORM, plan=plan), "I10 ") == "I10 "


def test_a_relay_that_repeats_everything_is_caught() -> None:
    """I9: what may have been applied and has no key is not sent again."""
    options = replace(PLAN.options, repeat_always=True)
    plan = replace(PLAN, options=options)
    assert caught(replace(STORM, plan=plan), "I9 repeated") == "I9 repeated"


class Amnesiac(MemorySpool):
    """A spool that forgets what has settled."""

    async def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> Sequence[bool]:
        kept = await super().settle(settlements)
        for lease, _ in settlements:
            entry = self.entries.get(lease.entry.message.key)
            if entry is not None and entry.state is not State.WAITING:
                del self.entries[entry.message.key]
        return kept


def test_a_spool_that_forgets_what_it_delivered_is_caught() -> None:
    """I1: a receipt is good for as long as was said."""
    assert caught(STORM, "I1 lost", spool=Amnesiac) == "I1 lost"


# --- and complaints about histories written by hand ---------------------------------------------


def test_a_planted_history_is_complained_of() -> None:
    """The plainest loss there is: a promise, and then nobody knows of it."""
    asked = post(b"work-1", (b"Idempotency-Key", b"k"))
    receipt = Response(status=202, reason=b"", fields=[(b"Location", b"/_unspool/receipts/x")])
    events = [
        Event(at=Instant(1), what="asked", ask=1, request=asked),
        Event(at=Instant(2), what="answered", ask=1, request=asked, answer=receipt),
    ]
    assert [c.split(":")[0] for c in complaints(events)] == ["I1 lost"]
    assert complaints([]) == []
    assert complaints(events[:1], Rules()) == []
