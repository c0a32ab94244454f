"""The portal: blocking code and one event loop, whatever becomes of either."""

from __future__ import annotations

import asyncio
import contextvars
import linecache
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from unspool.errors import Unavailable
from unspool.middleware.portal import Portal
from unspool.middleware.visit import AsyncHand, Hand, Interrupted


@pytest.fixture
def portal() -> Iterator[Portal]:
    one = Portal("portal-test")
    yield one
    one.close()


async def double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


def test_it_awaits_there_and_waits_here(portal: Portal) -> None:
    """`call` gives what the work gives, from another thread."""

    async def where() -> int:
        return threading.get_ident()

    assert portal.call(double, 21) == 42
    assert portal.call(where) != threading.get_ident()


def test_what_is_handed_over_is_done_in_the_thread_that_asked(portal: Portal) -> None:
    """`between`: the loop goes on meanwhile, and the work gets what the function gave."""
    here = threading.get_ident()
    goes_on = threading.Event()

    async def work(hand: Hand, value: int) -> tuple[int, int]:
        async def tick() -> None:
            for _ in range(4):
                await asyncio.sleep(0.001)
            goes_on.set()

        ticking = asyncio.create_task(tick())
        ident = await hand(slow)
        await ticking
        return ident, await double(value)

    def slow() -> int:
        assert goes_on.wait(20), "the loop stands still"
        return threading.get_ident()

    assert portal.between(work, 4) == (here, 8)


def test_many_threads_at_once(portal: Portal) -> None:
    """Each thread's errands are done by it, and by no other."""

    async def work(hand: Hand) -> bool:
        first = await hand(threading.get_ident)
        await asyncio.sleep(0)
        return first == await hand(threading.get_ident)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda _: portal.between(work), range(500)))
        assert list(pool.map(lambda n: portal.call(double, n), range(500))) == [
            2 * n for n in range(500)
        ]


def test_exceptions_go_both_ways(portal: Portal) -> None:
    """What the function raises reaches the work as itself; what the work raises, the caller."""
    raised = KeyError("here")
    seen: list[BaseException] = []

    def fails() -> None:
        raise raised

    async def work(hand: Hand) -> None:
        try:
            await hand(fails)
        except KeyError as error:
            seen.append(error)
            raise ZeroDivisionError from error

    with pytest.raises(ZeroDivisionError):
        portal.between(work)
    assert seen == [raised]


def test_a_stop_iteration_is_an_error_and_no_end(portal: Portal) -> None:
    """A future cannot carry one; without care the caller would wait for ever."""

    def stops() -> int:
        return next(iter(()))

    async def work(hand: Hand) -> int:
        return await hand(stops)

    with pytest.raises(RuntimeError, match="StopIteration"):
        portal.between(work)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_of_the_handler_is_told_and_goes_on(
    portal: Portal, interrupt: type[BaseException]
) -> None:
    """The work gets to write down how it ended before the interrupt goes on; the loop lives."""
    written: list[str] = []

    def handler() -> None:
        raise interrupt

    async def work(hand: Hand) -> None:
        try:
            await hand(handler)
        except Interrupted:
            await asyncio.sleep(0.02)
            written.append("released")
            raise

    with pytest.raises(interrupt):
        portal.between(work)
    assert written == ["released"]
    assert portal.call(double, 1) == 2


def test_an_interrupt_while_it_waits_cancels_the_work(portal: Portal) -> None:
    """Ctrl-C in the middle of `call` and `between`: what ran there is cancelled, and has ended."""
    ended: list[bool] = []

    async def long(*_: object) -> None:
        try:
            while not waits_at_the_portal(threading.main_thread()):
                await asyncio.sleep(0.001)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            ended.append(True)
            raise

    for way in (portal.call, portal.between):
        with pytest.raises(KeyboardInterrupt):
            way(long)
    assert ended == [True, True]


def waits_at_the_portal(thread: threading.Thread) -> bool:
    """Not only on its way there: an interrupt would find no work to cancel."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if "visit.ended.result()" in line or "errands.get()" in line:
            return True
        frame = frame.f_back
    return False


def test_a_call_from_its_own_loop_is_refused_with_a_sentence(portal: Portal) -> None:
    """It would wait for itself for ever."""

    async def nested() -> int:
        return portal.call(double, 1)

    async def closing() -> None:
        portal.close()

    with pytest.raises(RuntimeError, match="wait for ever"):
        portal.call(nested)
    with pytest.raises(RuntimeError, match="own loop"):
        portal.call(closing)
    assert portal.call(double, 1) == 2


async def test_reach_awaits_what_is_handed_over_in_the_task_that_called(portal: Portal) -> None:
    """With its loop, its task and its context, both ways."""
    word = contextvars.ContextVar("word", default="")
    word.set("outside")
    here = asyncio.get_running_loop(), asyncio.current_task()

    async def handler(value: int) -> int:
        assert (asyncio.get_running_loop(), asyncio.current_task()) == here
        assert word.get() == "outside"
        word.set("inside")
        return value + 1

    async def work(hand: AsyncHand, value: int) -> int:
        assert asyncio.get_running_loop() is not here[0]
        return 10 * await hand(handler, value)

    assert await portal.reach(work, 1) == 20
    assert word.get() == "inside"


async def test_reach_cancelled_here_is_told_there(portal: Portal) -> None:
    """While the handler runs as `Interrupted`; while the work waits, by a cancel."""
    heard: list[type[BaseException]] = []
    here, began = asyncio.get_running_loop(), asyncio.Event()
    over = threading.Semaphore(0)

    async def handler() -> None:
        began.set()
        await asyncio.sleep(30)

    async def there(hand: AsyncHand) -> None:
        try:
            await hand(handler)
        except BaseException as error:
            heard.append(type(error))
            over.release()
            raise

    async def alone(hand: AsyncHand) -> None:
        here.call_soon_threadsafe(began.set)
        try:
            await asyncio.sleep(30)
        except BaseException as error:
            heard.append(type(error))
            over.release()
            raise

    for work in (there, alone):
        began.clear()
        task = asyncio.create_task(portal.reach(work))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(over.acquire)
    assert heard == [Interrupted, asyncio.CancelledError]


def test_close_lets_calls_end_lets_go_and_can_be_used_again() -> None:
    """`on_close` runs there, after what was under way; twice does nothing; a later call reopens."""
    order: list[str] = []

    async def lets_go() -> None:
        order.append("let go")

    async def work() -> None:
        await asyncio.sleep(0.1)
        order.append("worked")

    portal = Portal("portal-test", on_close=lets_go, closes_s=60)
    thread = threading.Thread(target=portal.call, args=(work,))
    thread.start()
    while not portal._busy:
        time.sleep(0.001)
    portal.close()
    portal.close()
    thread.join()
    assert order == ["worked", "let go"]
    assert not [one for one in threading.enumerate() if one.name == "portal-test"]
    assert portal.call(double, 3) == 6
    portal.close()


def test_a_handler_that_outlasts_the_portal_is_told() -> None:
    """It gets a sentence, the work is cancelled first, and nobody hangs."""
    portal = Portal("portal-test", closes_s=0.05)
    began, may_end = threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def handler() -> None:
        began.set()
        may_end.wait()

    async def work(hand: Hand) -> None:
        await hand(handler)

    def asks() -> None:
        try:
            portal.between(work)
        except Unavailable as error:
            caught.append(error)

    thread = threading.Thread(target=asks)
    thread.start()
    began.wait()
    portal.close()
    may_end.set()
    thread.join()
    assert "may have had its effect" in str(caught[0])


SCRIPTS = {
    "fork after import": """
        pid = os.fork()
        assert portal.call(double, 2) == 4
        os.write(1, b"child " if pid == 0 else b"parent ")
        portal.close() if pid == 0 else os.waitpid(pid, 0)
    """,
    "fork after use: it lets go before, and each process makes its own": """
        assert portal.call(double, 1) == 2
        pid = os.fork()
        assert log == ["let go"], log
        assert portal.call(double, 2) == 4
        os.write(1, b"child " if pid == 0 else b"parent ")
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
    """,
    "fork while in use: the child is refused, the parent goes on": """
        pids = []
        def handler():
            pid = os.fork()
            if pid == 0:
                try:
                    portal.call(double, 1)
                except Unavailable as error:
                    assert "forked" in str(error)
                    os.write(1, b"child ")
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        async def work(hand):
            await hand(handler)
            return await double(4)
        assert portal.between(work) == 8 and not log
        print("parent")
    """,
    "the interpreter ends though nobody closed it, and it is closed": """
        assert portal.call(double, 1) == 2
        print("child"); print("parent")
        import atexit
        atexit._run_exitfuncs()
        assert log == ["let go"], log
    """,
    "it ends while a thread is in the middle of a call": """
        import threading
        threading.Thread(target=portal.call, args=(asyncio.sleep, 0.2), daemon=True).start()
        while not portal._busy: pass
        print("child"); print("parent")
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_forks_and_exits(name: str) -> None:
    """What must hold over a fork and at the end, in a process of its own."""
    head = """
        import asyncio, os
        from unspool.errors import Unavailable
        from unspool.middleware.portal import Portal
        async def double(value):
            return 2 * value
        log = []
        async def lets_go():
            log.append("let go")
        portal = Portal("p", on_close=lets_go)
    """
    code = textwrap.dedent(head) + textwrap.dedent(SCRIPTS[name])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert sorted(done.stdout.split()) == ["child", "parent"]


@pytest.mark.parametrize(
    ("module", "question"),
    [("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")],
)
def test_green_threads_are_refused_with_the_command_that_helps(module: str, question: str) -> None:
    """Replaced threads are none: the loop would never get a turn, or stop everybody's."""
    code = f"""
import sys, types
green = types.ModuleType({module!r})
green.{question} = lambda name: name in ("thread", "threading")
sys.modules[{module!r}] = green
from unspool.middleware.portal import Portal
async def work(): ...
try:
    Portal("p").call(work)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Misconfigured" in done.stdout
    assert "gthread" in done.stdout
