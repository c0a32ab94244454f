"""Calls of obstore that block, in threads of ours.

    threads = Threads(most)
    result = await threads(function, …)
    threads.end()
    await all_of(calls)         all of them at once; the first error, once all have ended

What obstore offers to be awaited is told to the loop by a thread of Rust's, which is not done with
Python when the loop has heard of it. Where the program ends at that moment, the interpreter stops
that thread, and the process aborts (PyO3/pyo3-async-runtimes#40): of short programs on a busy
machine, one in five. Our threads are waited for at the end of the program.

A call that is not waited for any longer goes on until obstore's own deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from obstore.store import S3Store


class Threads:
    """See the head of this file."""

    def __init__(self, most: int) -> None:
        self._pool: Final = ThreadPoolExecutor(most, thread_name_prefix="unspool-s3")

    async def __call__(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(function, *arguments, **named))

    def end(self) -> None:
        """What has begun ends; what has not is not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def read_file(store: S3Store, path: str) -> tuple[bytes, str]:
    """What is in a file, and its ETag. Raises `FileNotFoundError`, and what obstore raises."""
    import obstore

    result = obstore.get(store, path)
    return bytes(result.bytes()), result.meta["e_tag"] or ""


async def all_of(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """What they return, in order."""
    ended = await asyncio.gather(*calls, return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return ended
