"""Every spool held against the memory model: any history, with restarts in it, ends alike.

One machine; each engine says how it is opened, and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from servers.nats import Nats
from servers.nats import nats as nats_server
from servers.postgres import Postgres
from servers.postgres import postgres as postgres_server
from servers.redis import Redis
from servers.redis import redis as redis_server
from unspool.core.lifecycle import (
    Bounced,
    Deferred,
    Delivered,
    Forgotten,
    Reason,
    State,
    Verdict,
)
from unspool.core.message import (
    NEVER,
    Attempt,
    Destination,
    Instant,
    Key,
    Message,
    Request,
    Response,
)
from unspool.spools.leveldb.spool import open_leveldb
from unspool.spools.log.spool import open_log
from unspool.spools.memory import MemorySpool
from unspool.spools.nats.open import open_nats
from unspool.spools.open import open_spool
from unspool.spools.protocol import Entry, Lease, New, Query
from unspool.spools.redis.spool import RedisSpool
from unspool.spools.sqlite.spool import SqliteSpool

T = TypeVar("T")

EXAMPLES = int(os.environ.get("UNSPOOL_EXAMPLES", "100"))
PATIENCE_S = 3 * max(EXAMPLES, 100)
MEMORY = Path("/dev/shm")
"""Nothing here is about the disk, and memory takes thousands of histories."""

START = 1_000_000
NAMES = "abcdefgh"
LANES = (Destination("http://a"), Destination("http://b"))
WANTS = st.dictionaries(st.sampled_from(LANES), st.integers(1, 4), min_size=1)

entries = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES),
        "form": st.sampled_from([State.WAITING, State.WAITING, State.CLAIMED, State.DELIVERED]),
        "print_": st.sampled_from([b"one", b"one", b"one", b"another"]),
        "lane": st.sampled_from(LANES),
        "order_key": st.sampled_from(["", "", "x", "y"]),
        "due_in": st.sampled_from([0, 0, 50, NEVER]),
        "keep": st.integers(1, 400),
        "lifetime": st.sampled_from([100, 400, 5_000]),
        "repeat": st.booleans(),
    }
)
verdicts = st.one_of(
    st.builds(lambda ms: ("deferred", ms), st.sampled_from([0, 30, 100, NEVER])),
    st.builds(lambda ms: ("delivered", ms), st.integers(1, 400)),
    st.builds(lambda ms: ("bounced", ms), st.integers(1, 400)),
    st.just(("forgotten", 0)),
)


class IsMemory(RuleBasedStateMachine):
    open_spool: Callable[[Path], Coroutine[Any, Any, Any]]
    """Of an engine. What is proved here does not hang on the sync, and goes ten times as far
    without it."""
    frees = True
    """Does whoever opens it alone find the leases of a dead process free? Where others may have it
    open elsewhere, nobody can know that he is alone."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.now = START
        self.made = 0
        self.leases: list[Lease] = []
        self.model = MemorySpool()
        self.spool = self._open()

    def _open(self) -> Any:
        return self.run(type(self).open_spool(self.folder / "spool"))

    def run(self, verb: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(verb)

    def teardown(self) -> None:
        self.run(self.spool.aclose())
        self.loop.close()
        shutil.rmtree(self.folder)

    def _entry(
        self, *, name: str, form: State, print_: bytes, lane: Destination, order_key: str,
        due_in: int, keep: int, lifetime: int, repeat: bool,
    ) -> Entry:  # fmt: skip
        self.made += 1
        claimed, settled = form is State.CLAIMED, form is State.DELIVERED
        return Entry(
            message=Message(
                key=Key(name),
                fingerprint=print_,
                destination=lane,
                accepted_at=Instant(self.now),
                expires_at=Instant(self.now + lifetime),
                nonce=self.made.to_bytes(16, "big"),
                name=name * 2,
                order_key=order_key,
                repeat=repeat,
                request=Request(b"POST", b"/", ((b"N", b"%d" % self.made),), b"body"),
            ),
            state=form,
            due_at=Instant(min(NEVER, self.now + due_in)),
            attempt=0 if form is State.WAITING else 1,
            leased_until=Instant(self.now + 60 if claimed else 0),
            answer=self._answer() if settled else None,
            settled_at=Instant(self.now if settled else 0),
            keep_until=Instant(self.now + keep if claimed or settled else 0),
            answer_until=Instant(self.now + keep // 2 if settled else 0),
        )

    def _answer(self) -> Response:
        return Response(200, b"OK", ((b"A", b"%d" % self.made),), b"answer")

    @rule(batch=st.lists(entries, min_size=1, max_size=5))
    def accept(self, batch: list[dict[str, Any]]) -> None:
        made = [self._entry(**fields) for fields in batch]
        expected = self.run(self.model.accept(made))
        assert list(self.run(self.spool.accept(made))) == list(expected)
        for answer in expected:
            if isinstance(answer, New) and answer.entry.state is State.CLAIMED:
                self.leases.append(Lease(answer.entry, answer.entry.leased_until))

    @rule(wants=WANTS, term=st.sampled_from([20, 60]))
    def lease(self, wants: dict[Destination, int], term: int) -> None:
        now, until = Instant(self.now), Instant(self.now + term)
        expected = self.run(self.model.lease(wants, now=now, until=until))
        assert list(self.run(self.spool.lease(wants, now=now, until=until))) == list(expected)
        self.leases += expected

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), ends=st.lists(verdicts, min_size=1, max_size=4))
    def settle(self, data: st.DataObject, ends: list[tuple[str, int]]) -> None:
        """Early, late, twice, in one batch or after everything else."""
        pairs = [(data.draw(st.sampled_from(self.leases)), self._verdict(*end)) for end in ends]
        expected = self.run(self.model.settle(pairs))
        assert list(self.run(self.spool.settle(pairs))) == list(expected)

    def _verdict(self, kind: str, ms: int) -> Verdict:
        self.made += 1
        at = Instant(min(NEVER, self.now + ms))
        trail = (Attempt(self.made, Instant(self.now), 200, "", "answered"),)
        match kind:
            case "deferred":
                return Deferred(at, trail)
            case "delivered":
                half = Instant(self.now + ms // 2)
                return Delivered(self._answer(), at, half, trail, stored=ms % 2 == 0)
            case "bounced":
                return Bounced(Reason.UNKNOWN, at, trail)
        return Forgotten()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), count=st.integers(1, 3), term=st.sampled_from([20, 60]))
    def renew(self, data: st.DataObject, count: int, term: int) -> None:
        leases = [data.draw(st.sampled_from(self.leases)) for _ in range(count)]
        until = Instant(self.now + term)
        expected = self.run(self.model.renew(leases, until=until))
        assert list(self.run(self.spool.renew(leases, until=until))) == list(expected)

    @rule(keys=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
    def seize(self, keys: list[str]) -> None:
        names, now, until = [Key(key) for key in keys], Instant(self.now), Instant(self.now + 40)
        expected = self.run(self.model.seize(names, now=now, until=until))
        assert list(self.run(self.spool.seize(names, now=now, until=until))) == list(expected)
        self.leases += [lease for lease in expected if lease is not None]

    @rule(limit=st.integers(1, 4))
    def expire(self, limit: int) -> None:
        now, until = Instant(self.now), Instant(self.now + 40)
        expected = self.run(self.model.expire(now=now, until=until, limit=limit))
        assert list(self.run(self.spool.expire(now=now, until=until, limit=limit))) == list(
            expected
        )
        self.leases += expected

    @rule(ms=st.integers(1, 120))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @rule()
    def sweep(self) -> None:
        """To the end: which go first is nobody's business."""
        now = Instant(self.now)
        expected = self.run(self.model.sweep(now=now, limit=1_000))
        assert self.run(self.spool.sweep(now=now, limit=1_000)) == expected

    @rule()
    def restart(self) -> None:
        """Alone: what was leased was a dead process's, and is free; the next is told."""
        self.run(self.spool.aclose())
        self.spool = self._open()
        for key, entry in self.model.entries.items() if self.frees else ():
            if entry.state in (State.WAITING, State.CLAIMED) and entry.leased_until:
                self.model.entries[key] = replace(entry, leased_until=Instant(1))

    @precondition(lambda self: self.spool.promises.shared)
    @rule()
    def hand_over(self) -> None:
        """Another process takes over while this one still has it open: leases stay."""
        other = self._open()
        self.run(self.spool.aclose())
        self.spool = other

    @invariant()
    def alike(self) -> None:
        keys = [Key(name) for name in NAMES]
        assert list(self.run(self.spool.find(keys))) == list(self.run(self.model.find(keys)))
        for query in (Query(), Query(held=True), Query(destination=LANES[0], held=False)):
            arguments: dict[str, Any] = {"after": None, "limit": 99, "requests": True}
            assert list(self.run(self.spool.browse(query, **arguments))) == list(
                self.run(self.model.browse(query, **arguments))
            )
        edges = [Instant(self.now - age) for age in (0, 50, 200)]
        assert list(self.run(self.spool.tally(edges))) == list(self.run(self.model.tally(edges)))
        for after in (None, LANES[0]):
            assert list(self.run(self.spool.survey(after=after, limit=9))) == list(
                self.run(self.model.survey(after=after, limit=9))
            )


async def chained(path: Path) -> Any:
    """A chain of two that are both well: the first takes everything."""
    from .test_chain_conformance import chain_of

    return await chain_of(
        lambda: SqliteSpool.open(path, test_hook_no_sync=True),
        lambda: SqliteSpool.open(path.with_name("second"), test_hook_no_sync=True),
    )


ENGINES = {
    "chain": ("apsw", chained),
    "sqlite": ("apsw", lambda path: SqliteSpool.open(path, test_hook_no_sync=True)),
    "leveldb": ("plyvel", lambda path: open_leveldb(path, test_hook_no_sync=True)),
    "log": ("unspool", lambda path: open_log(path, test_hook_no_sync=True)),
}
SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_the_memory_spool(engine: str) -> None:
    needs, open_spool = ENGINES[engine]
    pytest.importorskip(needs)
    machine = type(f"{engine} is memory", (IsMemory,), {"open_spool": staticmethod(open_spool)})
    # What a chain adds costs twice what the spools in it do, and is mostly shown elsewhere.
    count = EXAMPLES // 5 if engine == "chain" else EXAMPLES
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=count))


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with redis_server(memory=True, settings={"appendfsync": "no"}) as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def nats() -> Iterator[Nats]:
    with nats_server() as server:
        yield server


SHARED = {
    "redis": (0.4, lambda server, path: RedisSpool.open(server.spool(path.parent.name))),
    "postgres": (0.05, lambda server, path: open_spool(server.spool(f"at_{path.parent.name}"))),
    "nats": (0.1, lambda server, path: open_nats(server.url(path.parent.name))),
}
"""A fixture of that name, how much of the time it gets, and how a new spool there is opened."""


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.parametrize("engine", SHARED)
def test_a_shared_one_is_the_memory_spool(engine: str, request: pytest.FixtureRequest) -> None:
    server, (share, open_spool) = request.getfixturevalue(engine), SHARED[engine]
    opens = {"open_spool": staticmethod(lambda path: open_spool(server, path)), "frees": False}
    machine = type(f"{engine} is memory", (IsMemory,), opens)
    examples = settings(SETTINGS, max_examples=max(1, int(EXAMPLES * share)))
    run_state_machine_as_test(machine, settings=examples)
