"""`once`: a function is run once for each key, blocking or not, and its result is given again."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from unspool.errors import (
    Busy,
    Crossed,
    Expired,
    Misconfigured,
    NotKept,
    OutcomeUnknown,
    PromiseBroken,
    Reused,
    Unkeepable,
)
from unspool.middleware.once import Again, Done, Once, Unknown
from unspool.middleware.running import Running
from unspool.spools.sqlite.spool import SqliteSpool


@pytest.fixture
def once() -> Iterator[Once]:
    found = Once()
    yield found
    found.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/idem.db"


@dataclasses.dataclass
class Order:
    id: str
    amount: int = 5


class Declined(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(f"declined: {code}")
        self.code = code


class Flaky(Exception):
    pass


FALSY: list[Any] = [None, 0, "", [], {}, False, b"", 0.0, b"\x00\xff", {"a": [1, None]}]


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_whatever_it_gives_is_given_again(once: Once, url: str, value: Any) -> None:
    """Falsy results and None too (L1, L2)."""
    runs: list[str] = []

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str) -> Any:
        runs.append(m)
        return value

    for _ in range(3):
        result = handle("k1")
        assert (result, type(result)) == (value, type(value))
    assert runs == ["k1"]


async def test_async_functions_are_the_same(once: Once, url: str) -> None:
    """L2: `async def` runs in its caller's task; twenty at once are one run."""
    runs: list[Any] = []

    @once(url, key=lambda m: m, scope="orders", busy="wait")
    async def handle(m: str) -> str | None:
        runs.append(asyncio.current_task())
        await asyncio.sleep(0.02)
        return None

    assert await asyncio.gather(*(handle("k1") for _ in range(20))) == [None] * 20
    assert len(runs) == 1
    assert await handle("k1") is None
    assert await handle("k2") is None
    assert runs[1] is asyncio.current_task()


def test_it_runs_in_the_thread_of_its_caller(once: Once, url: str) -> None:
    """So that thread-bound sessions and connections go on working."""

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str) -> int:
        return threading.get_ident()

    assert handle("k1") == threading.get_ident()


def test_methods(once: Once, url: str) -> None:
    """`self` names nothing of the work: another instance is given the same."""

    class Shop:
        def __init__(self) -> None:
            self.sold: list[str] = []

        @once(url, key=lambda item: item, scope="sell")
        def sell(self, item: str, *, ctx: Running) -> str:
            self.sold.append(item)
            return f"sold {item}"

        @once(url, key=lambda item: item, scope="buy")
        async def buy(self, item: str) -> str:
            self.sold.append(item)
            return f"bought {item}"

    one, other = Shop(), Shop()
    assert one.sell("tea") == other.sell("tea") == "sold tea"
    assert asyncio.run(one.buy("tea")) == asyncio.run(other.buy("tea")) == "bought tea"
    assert (one.sold, other.sold) == (["tea", "tea"], [])


def test_the_result_is_of_the_type_that_the_function_says(once: Once, url: str) -> None:
    """Read by the return annotation: a dataclass, a UUID, a tuple, a set."""
    made = (Order("k1"), uuid4(), {1, 2})

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str) -> tuple[Order, UUID, set[int]]:
        return made

    assert handle("k1") == made
    assert handle("k1") == made
    assert isinstance(handle("k1")[0], Order)


def test_an_id_is_kept_and_the_row_is_found_by_it(once: Once, url: str) -> None:
    """`encode` and `decode`: keep a small thing, make the whole of it again."""
    rows = {7: object()}

    @once(url, key=lambda m: m, scope="orders", encode=lambda row: 7, decode=rows.get)
    def handle(m: str) -> object:
        return rows[7]

    assert handle("k1") is rows[7]
    assert handle("k1") is rows[7]


def test_a_result_that_cannot_be_kept(once: Once, url: str) -> None:
    """Said before the first run where the annotation tells; else after it, with the result in the
    error, and the fact is kept."""
    with pytest.raises(Misconfigured, match="encode="):

        @once(url, key=lambda m: m, scope="threads")
        def never(m: str) -> threading.Thread:
            raise AssertionError

    runs: list[str] = []
    odd = object()

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str):  # type: ignore[no-untyped-def]
        runs.append(m)
        return odd

    with pytest.raises(Unkeepable) as caught:
        handle("k1")
    assert caught.value.value is odd
    with pytest.raises(NotKept):
        handle("k1")
    assert runs == ["k1"]


def test_the_same_arguments_are_the_same_however_they_are_given(once: Once, url: str) -> None:
    """L3: by the signature. Others under the key are refused, in whatever order."""

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str, amount: int = 5, *, note: str = "") -> int:
        return amount

    assert handle("k1") == 5
    assert handle("k1", 5) == handle(m="k1", amount=5) == handle("k1", note="", amount=5) == 5
    with pytest.raises(Reused) as caught:
        handle("k1", 6)
    assert "5" not in str(caught.value)


def test_what_counts_as_the_same(once: Once, url: str) -> None:
    """Some parameters, a function of them, or nothing; what cannot be compared is said at once."""

    @once(url, key=lambda m: m.id, scope="a", fingerprint=("m",))
    def by_name(m: Order, delivery: int) -> int:
        return delivery

    assert by_name(Order("k1"), 1) == by_name(Order("k1"), 2) == 1
    with pytest.raises(Reused):
        by_name(Order("k1", 6), 1)

    @once(url, key=lambda m: m.id, scope="b", fingerprint=lambda m: m.amount)
    def by_function(m: Order, delivery: int) -> int:
        return delivery

    assert by_function(Order("k1"), 1) == by_function(Order("k1"), 2) == 1

    @once(url, key=lambda m: m.id, scope="c", fingerprint=None)
    def by_nothing(m: Order) -> int:
        return m.amount

    assert by_nothing(Order("k1")) == by_nothing(Order("k1", 6)) == 5

    @once(url, key=lambda m: "k1", scope="d")
    def by_all(m: object) -> int:
        raise AssertionError

    with pytest.raises(Misconfigured, match="fingerprint="):
        by_all(object())
    with pytest.raises(Misconfigured, match="no parameter"):

        @once(url, key=lambda m: m, scope="e", fingerprint=("n",))
        def misnamed(m: str) -> None: ...


def test_final_exceptions_are_the_result(once: Once, url: str) -> None:
    """L5: kept, and raised again with class, arguments and attributes."""
    runs: list[str] = []

    @once(url, key=lambda m: m, scope="orders", final=(Declined,), transient=(Flaky,))
    def handle(m: str, ctx: Running) -> None:
        runs.append(m)
        ctx.effect()
        raise Declined("funds")

    for _ in range(3):
        with pytest.raises(Declined, match="declined: funds") as caught:
            handle("k1")
        assert (caught.value.args, caught.value.code) == (("declined: funds",), "funds")
    assert runs == ["k1"]


def test_transient_exceptions_release(once: Once, url: str) -> None:
    """L5: the next one runs, whatever was declared; the class that is nearest counts."""

    class Slow(Declined):
        pass

    raised: list[Exception] = [Flaky(), Slow("later"), Declined("funds")]

    @once(url, key=lambda m: m, scope="orders", final=(Declined,), transient=(Flaky, Slow))
    def handle(m: str, ctx: Running) -> None:
        ctx.effect()
        raise raised.pop(0)

    for expected in (Flaky, Slow, Declined, Declined):
        with pytest.raises(expected):
            handle("k1")
    assert not raised


def test_an_exception_below_the_declared_one(once: Once, url: str) -> None:
    """It is of its own class again; of the declared one where there is no such class any more."""

    class Stolen(Declined):
        pass

    @once(url, key=lambda m: m, scope="orders", final=Declined)  # type: ignore[arg-type]
    def handle(m: str) -> None:
        raise Stolen("stolen") if m == "k1" else LookupError("k2")

    for _ in range(2):
        with pytest.raises(Stolen) as caught:
            handle("k1")
        assert caught.value.code == "stolen"
    Stolen.__qualname__ = "renamed"
    with pytest.raises(Declined) as other:
        handle("k1")
    assert (type(other.value), other.value.code) == (Declined, "stolen")


async def test_what_is_of_the_moment_is_no_result(once: Once, url: str) -> None:
    """A cancelled run and a crossed transaction are not kept, though `final=(Exception,)`."""
    started = asyncio.Event()
    raised: list[Exception] = [Crossed(), ValueError("kept")]

    @once(url, key=lambda m: m, scope="orders", final=(Exception,), busy="wait")
    async def handle(m: str, ctx: Running) -> None:
        if m == "effect":
            ctx.effect()
        if not started.is_set():
            started.set()
            await asyncio.sleep(20)
        raise raised.pop(0)

    for key in ("k1", "effect"):
        started.clear()
        task = asyncio.create_task(handle(key))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(OutcomeUnknown):
        await handle("effect")
    with pytest.raises(Crossed):
        await handle("k1")
    for _ in range(2):
        with pytest.raises(ValueError, match="kept"):
            await handle("k1")
    assert not raised


def test_other_exceptions_release_if_nothing_was_declared(once: Once, url: str) -> None:
    """F7."""
    raised = [ValueError("first")]

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str, ctx: Running) -> int:
        if raised:
            raise raised.pop()
        return ctx.attempt

    with pytest.raises(ValueError, match="first"):
        handle("k1")
    assert handle("k1") == 1


def test_after_an_effect_the_outcome_is_unknown(once: Once, url: str) -> None:
    """F8: it is not run again, and says so."""
    runs: list[str] = []

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str, ctx: Running) -> None:
        runs.append(ctx.child_key("charge"))
        raise ConnectionError

    with pytest.raises(ConnectionError):
        handle("k1")
    for _ in range(2):
        with pytest.raises(OutcomeUnknown, match="on_unknown"):
            handle("k1")
    assert len(runs) == 1


@pytest.mark.parametrize("waits", [False, True], ids=["def", "async"])
def test_somebody_finds_out(once: Once, url: str, waits: bool) -> None:
    """`on_unknown` is asked, with the arguments and the same child keys, until it knows."""
    runs: list[tuple[int, str]] = []
    asked: list[str] = []
    answers: list[Any] = [Unknown("the bank is closed"), Unknown("still"), Again(), Done("charged")]

    def reconcile(m: str, ctx: Running) -> Any:
        asked.append(ctx.child_key("charge"))
        answer = answers.pop(0)
        if str(answer) == "still":
            raise answer
        return answer

    def work(m: str, ctx: Running) -> str:
        runs.append((ctx.attempt, ctx.child_key("charge")))
        raise ConnectionError

    call: Callable[[str], Any]
    if waits:

        async def reconcile_later(m: str, ctx: Running) -> Any:
            await asyncio.sleep(0)
            return reconcile(m, ctx)

        @once(url, key=lambda m: m, scope="orders", on_unknown=reconcile_later)
        async def handle_later(m: str, ctx: Running) -> str:
            return work(m, ctx)

        def call(m: str) -> Any:
            return asyncio.run(handle_later(m))  # type: ignore[call-arg, arg-type]
    else:
        call = once(url, key=lambda m: m, scope="orders", on_unknown=reconcile)(work)  # type: ignore[assignment]

    with pytest.raises(ConnectionError):
        call("k1")
    for reason in ("the bank is closed", "still"):
        with pytest.raises(OutcomeUnknown, match=reason):
            call("k1")
    with pytest.raises(ConnectionError):
        call("k1")  # Again()
    assert call("k1") == "charged"
    assert call("k1") == "charged"
    assert [attempt for attempt, _ in runs] == [1, 2]
    assert len({*asked, *(key for _, key in runs)}) == 1, "L4: the same at each attempt"
    assert len(asked) == 4


def test_one_at_a_time_and_the_others_are_told(once: Once, url: str) -> None:
    """E1: fifty threads, one run; the others raise Busy, or wait for its result."""
    runs: list[str] = []
    go = threading.Event()

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str) -> int:
        runs.append(m)
        go.wait(60)
        return 7

    def attempt(_: int) -> Any:
        try:
            return handle("k1")
        except Busy as busy:
            return "busy" if busy.retry_after_ms > 0 else busy

    with ThreadPoolExecutor(50) as pool:
        futures = [pool.submit(attempt, n) for n in range(50)]
        while sum(future.done() for future in futures) < 49:
            time.sleep(0.005)
        go.set()
        found = [future.result() for future in futures]
    assert sorted(map(str, found)) == ["7"] + ["busy"] * 49
    assert (handle("k1"), runs) == (7, ["k1"])


def test_waiting_has_an_end(once: Once, url: str) -> None:
    """busy="wait" gives up after `wait_max_ms`."""
    begun, go = threading.Event(), threading.Event()

    @once(url, key=lambda m: m, scope="orders", busy="wait", wait_max_ms=100)
    def handle(m: str) -> int:
        begun.set()
        go.wait(60)
        return 7

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(handle, "k1")
        assert begun.wait(60)
        with pytest.raises(Busy):
            handle("k1")
        go.set()
        assert first.result() == 7


def test_one_call_by_itself(once: Once, url: str) -> None:
    """`once.run` is the same without a decorator, with `ctx` or without."""
    assert once.run(url, 7, lambda: "done", scope="orders") == "done"
    assert once.run(url, "7", lambda ctx: "other", scope="orders") == "done"
    with pytest.raises(Reused):
        once.run(url, 7, lambda: "other", scope="orders", fingerprint="another body")

    async def later(ctx: Running) -> int:
        return ctx.attempt

    assert asyncio.run(once.run(url, 8, later, scope="orders")) == 1


async def test_a_spool_that_is_open_already(once: Once, tmp_path: Path) -> None:
    """It is used, and stays open: it is its owner's to close."""
    spool = await SqliteSpool.open(tmp_path / "idem.db")

    @once(spool, key=lambda m: m, scope="orders")
    async def handle(m: str) -> int:
        return 7

    assert (await handle("k1"), await handle("k1")) == (7, 7)
    await asyncio.to_thread(once.close)
    assert await spool.find([]) == []
    await spool.aclose()


def test_one_within_another(once: Once, url: str) -> None:
    """A function may call another, or itself for other work; for the same work it is busy."""

    @once(url, key=lambda m: m, scope="inner")
    def inner(m: str) -> str:
        return f"inner {m}"

    @once(url, key=lambda m: m, scope="outer")
    def outer(m: str) -> str:
        if m == "round":
            return outer(m)
        return inner(m) if m == "k1" else outer("k1")

    assert outer("k2") == outer("k1") == "inner k1"
    with pytest.raises(Busy):
        outer("round")


def test_closed_and_used_again(once: Once, url: str) -> None:
    """`close` lets go; the next call opens again, and remembers."""
    runs: list[str] = []

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str) -> int:
        runs.append(m)
        return 7

    handle("k1")
    once.close()
    once.close()
    assert (handle("k1"), runs) == (7, ["k1"])


def test_what_makes_no_sense_is_refused_before_anything_runs(once: Once, url: str) -> None:
    """With the word that is wrong, and the one that was meant."""
    key = str
    with pytest.raises(Misconfigured, match="lease_ms"):
        once(url, key=key, scope="orders", lease_m=5)  # type: ignore[call-arg]
    for scope in ("", None, 7):
        with pytest.raises(Misconfigured, match="scope"):
            once(url, key=key, scope=scope)  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="final"):
        once(url, key=key, scope="orders", final=("Declined",))  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="busy"):
        once(url, key=key, scope="orders", busy="skip")  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="yields"):

        @once(url, key=key, scope="orders")
        def generator(m: str) -> Iterator[int]:
            yield 1

    @once(url, key=lambda m: m, scope="taken")
    def handle(m: object) -> None:
        raise AssertionError

    with pytest.raises(Misconfigured, match="One function, one scope"):

        @once(url, key=lambda m: m, scope="taken")
        def other(m: str) -> None: ...

    for nothing in (None, "", True, 1.5, [], "x" * 2000):
        with pytest.raises(Misconfigured, match="key"):
            handle(nothing)
    with pytest.raises(TypeError):
        handle()  # type: ignore[call-arg]
    with pytest.raises(PromiseBroken, match="survives"):
        once.run("memory:", 1, lambda: 1, scope="orders")


def test_two_applications_with_one_scope(once: Once, url: str) -> None:
    """The second is refused, for it would be given the first one's results; with a name it has
    keys of its own, and a package that was renamed goes on with its keys by saying the name."""

    def handle(m: str) -> str:
        return handle.__module__

    def of(package: str, **name: str) -> str:
        handle.__module__ = f"{package}.tasks"
        found = Once()
        try:
            return found(url, key=lambda m: m, scope="orders", **name)(handle)("k1")
        finally:
            found.close()

    assert of("shop") == of("shop") == "shop.tasks"
    with pytest.raises(Misconfigured, match=r"of 'orders' in this spool belong to .*'shop'"):
        of("billing")
    assert of("billing", name="billing") == "billing.tasks"
    assert of("store", name="once") == "shop.tasks"


def test_a_key_that_is_too_old(once: Once, url: str) -> None:
    """J3: a UUIDv7 from before the horizon may have run and been forgotten; it does not run."""
    old = UUID(int=(1_000 << 80) | (7 << 76) | (2 << 62))
    with pytest.raises(Expired):
        once.run(url, old, lambda: 1, scope="orders")


def test_the_page_names_every_option() -> None:
    """What is not on the page is not there for its readers."""
    from unspool.middleware.once import Options

    page = (Path(__file__).parent.parent.parent / "docs/howto/once.md").read_text("utf-8")
    for name in Options.__annotations__:
        assert f"`{name}`" in page, name


def test_frameworks_see_a_function(once: Once, url: str) -> None:
    """Its name, its docs and its parameters, less `ctx`."""
    import inspect

    @once(url, key=lambda m: m, scope="orders")
    def handle(m: str, amount: int = 5, *, ctx: Running) -> int:
        """What it does."""
        return amount

    assert inspect.isfunction(handle)
    assert (handle.__name__, handle.__doc__) == ("handle", "What it does.")
    assert str(inspect.signature(handle)) == "(m: 'str', amount: 'int' = 5) -> 'int'"
    assert "ctx" not in handle.__annotations__


def test_an_exception_that_cannot_be_written_down_still_ends_its_key(once: Once, url: str) -> None:
    """File names may hold what no UTF-8 has, and `str` may raise: the key is not held for ever."""

    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    runs = []

    @once(url, key=str, scope="odd", final=(ValueError,),
          survives="process")  # fmt: skip
    def work(key: str) -> None:
        runs.append(key)
        raise ValueError("bad file name", "caf\udce9.txt", Odd())

    for _ in range(2):
        with pytest.raises(ValueError, match="bad file name"):
            work("a")
    assert runs == ["a"]


def test_functions_of_one_name_in_two_modules_are_two_functions(once: Once, url: str) -> None:
    """Under one scope the second would be given the first one's results."""

    def made(module: str) -> None:
        def handle(key: str) -> str:
            return module

        handle.__module__ = module
        once(url, key=str, scope="work", survives="process")(handle)

    made("shop.orders")
    with pytest.raises(Misconfigured, match="One function, one scope"):
        made("shop.billing")
