"""S3 as a queue: put = a file that was not there before; take = read what is there. The drop box.

    s3://bucket[/prefix][?endpoint=http://127.0.0.1:9000][&region=…][&survives=power]

The prefix is `unspool` unless given. Needs obstore: pip install 'unspool[s3]'. Credentials are
found as AWS's own tools find them in the environment (AWS_ACCESS_KEY_ID, a role of the machine).

A bucket is no job server: nothing runs but storage, so it is there when everything of ours is down.
`put` writes `prefix/<digest of the bytes>` on the condition that it is not there (If-None-Match);
where it is, it is the same bytes, and handed over already. Anybody else may drop files under any
name that he has not used before: `aws s3 cp order.json s3://bucket/prefix/order-7.json`.

`take` lists and reads; files stay where they are, and nobody is kept from reading them too: with
two collectors on one bucket both may be given the same, and its key makes it one message.
`complete` deletes; a file whose name somebody used again meanwhile is another one, and stays.
`set_aside` moves to `prefix.aside/`. Where nothing comes, it looks less and less often, every
LOOK_MOST_S at last: each look is a request that costs money.

Promises: AWS keeps a file on several machines before it answers. Of another endpoint nothing is
known, unless the operator says so with `?survives=`.

Bugs: no order at all. In the milliseconds between the look at a file's tag and its deletion
somebody may write it again; then that is lost (obstore deletes under no condition): names are used
once. A name that obstore does not take (`orders//7.json`) is told as an error and left there, and
so is, while it is there, what sorts before it on its page of a list. Whoever may write into the
bucket may send any request to the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

from ..core.message import Value
from ..core.urls import concealed
from ..errors import Full, Misconfigured, Missing, Unavailable, UnspoolError
from .protocol import PAYLOAD_MAX_BYTES, Promises, Survives, Taken, too_large, unique
from .s3_names import FULL, OPERATOR, behind, code_in, listing, strange
from .s3_threads import Threads, all_of, read_file

if TYPE_CHECKING:
    from obstore.store import S3Store

log: Final = logging.getLogger("unspool.queues")

PREFIX: Final = "unspool"
AT_ONCE: Final = 16
"""Files read or written at once."""
OTHERS_AT_ONCE: Final = 4
"""Lists and deletions beside them."""
TAKE_BYTES: Final = 32 * 1024 * 1024
"""A take asks for no more."""
PAGES_MAX: Final = 10_000
"""Of one look: each has a thousand names, or ends at one that cannot be read."""
LOOK_LEAST_S: Final = 0.2
LOOK_MOST_S: Final = 10.0

_is_bucket: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]").fullmatch
_is_prefix: Final = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*").fullmatch
_is_origin: Final = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,255})(?::[0-9]{1,5})?/?"
).fullmatch
_is_region: Final = re.compile(r"[a-z0-9-]{1,64}").fullmatch


class Limits(Value, frozen=True):
    """Milliseconds that a server may take."""

    connect_ms: int = 5_000
    answer_ms: int = 30_000
    """For one request, its body included."""


class _Handle(Value, frozen=True):
    path: str
    tag: str
    """The file's ETag when it was read."""


class S3Queue:
    def __init__(
        self,
        store: S3Store,
        *,
        called: str,
        look: str = "",
        prefix: str = PREFIX,
        survives: Survives = Survives.NOTHING,
        limits: Limits | None = None,
    ) -> None:
        """`called`: the place as it may be shown; `look`: the command that asks it."""
        self._store: Final = store
        self._called: Final = called
        self._command: Final = look or listing(called, {})
        self._prefix: Final = prefix
        self._limits: Final = limits or Limits()
        self._room: Final = asyncio.Semaphore(AT_ONCE)
        self._threads: Final = Threads(AT_ONCE + OTHERS_AT_ONCE)
        self._held: Final[set[str]] = set()
        self._told: Final[set[str]] = set()
        self._after: str | None = None
        self._look_s = LOOK_LEAST_S
        self._failed_at = -1.0
        self._closed = False
        self.promises: Final = Promises(
            survives=survives,
            exclusive=False,
            payload_max_bytes=PAYLOAD_MAX_BYTES,
            aside=f"{prefix}.aside",
            detail=f"S3, {called}",
        )

    # --- handing over -----------------------------------------------------------------------

    async def put(self, payloads: Sequence[bytes], /) -> None:
        self._must_be_open()
        for payload in payloads:
            if len(payload) > self.promises.payload_max_bytes:
                raise too_large(payload, self.promises)
        await self._write(self._prefix, payloads)

    async def _write(self, prefix: str, payloads: Sequence[bytes]) -> None:
        began = asyncio.get_running_loop().time()
        await all_of(
            self._write_one(f"{prefix}/{unique(payload)}", payload, began) for payload in payloads
        )

    async def _write_one(self, path: str, payload: bytes, began: float) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        async with self._room, self._translated():
            if self._failed_at >= began:  # who waits behind a failure has no deadline of his own
                raise self._trouble("failed a moment ago, and was not asked again")
            with contextlib.suppress(AlreadyExistsError):  # these bytes, and no others
                await self._threads(
                    obstore.put, self._store, path, payload, mode="create", use_multipart=False
                )

    # --- bringing back ----------------------------------------------------------------------

    async def take(self, *, limit: int, wait_ms: int) -> Sequence[Taken]:
        self._must_be_open()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_ms / 1000
        while limit > 0:
            paths = await self._look(limit)
            self._held.update(paths)
            found: list[Taken | None] = []
            try:
                found = await all_of(self._read(path) for path in paths)
            finally:
                got = {one.handle.path for one in found if one and isinstance(one.handle, _Handle)}
                self._held.difference_update({*paths} - got)
            if taken := [one for one in found if one is not None]:
                self._look_s = LOOK_LEAST_S
                return taken
            left_s = until - loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(min(left_s, self._look_s))
            self._look_s = min(self._look_s * 2, LOOK_MOST_S)
        return []

    async def _look(self, limit: int) -> list[str]:
        """Up to `limit` files that we do not hold. It goes on where it left off, round and round,
        so that none is passed over for ever by names that sort before it."""
        paths: list[str] = []
        size = 0
        starts = [self._after, None] if self._after is not None else [None]
        for start in starts:
            async with contextlib.aclosing(self._listed(start)) as listed:
                async for meta in listed:
                    path, bytes_ = meta["path"], meta["size"]
                    if path in self._held or path in paths:
                        continue
                    if bytes_ > PAYLOAD_MAX_BYTES:
                        self._say(path, f"has more than {PAYLOAD_MAX_BYTES} bytes")
                        continue
                    size += bytes_
                    if len(paths) == limit or (paths and size > TAKE_BYTES):
                        return paths
                    paths.append(path)
                    self._after = path
            self._after = None
        return paths

    async def _listed(self, start: str | None) -> AsyncGenerator[Any, None]:
        pages = self._pages(start)
        for _ in range(PAGES_MAX):
            try:
                async with self._translated():
                    page = await self._threads(next, pages, None)
            except Unavailable as error:
                name = strange(str(error.__cause__))
                if name is None or (start := behind(name, self._prefix)) is None:
                    raise
                self._say(name, "has a name that obstore does not take")
                pages = self._pages(start)
                continue
            if page is None:
                return
            for meta in page:
                yield meta

    def _pages(self, start: str | None) -> Iterator[Any]:
        import obstore

        listing = obstore.list(self._store, f"{self._prefix}/", offset=start, chunk_size=1000)
        return iter(listing)

    async def _read(self, path: str) -> Taken | None:
        async with self._room, self._translated():
            try:
                payload, tag = await self._threads(read_file, self._store, path)
            except FileNotFoundError:
                return None  # another collector was quicker
            return Taken(payload, path, _Handle(path, tag))

    def _say(self, path: str, why: str) -> None:
        if path not in self._told and len(self._told) < 1000:
            self._told.add(path)
            log.error(
                "%r in %s %s, and is left where it is; the rest goes on. Put what is in it under"
                " another name, and remove it", path, self._called, why,
            )  # fmt: skip

    async def complete(self, taken: Sequence[Taken], /) -> None:
        import obstore

        held = [one for one in taken if _handle(one).path in self._held]
        same = await all_of(self._is_same(one) for one in held)
        paths = [_handle(one).path for one, yes in zip(held, same, strict=True) if yes]
        if paths:
            async with self._translated():
                await self._threads(obstore.delete, self._store, paths)
        await self.give_back(held)

    async def _is_same(self, one: Taken) -> bool:
        """Is the file still the one that was taken? One of our own names is never another."""
        import obstore

        handle = _handle(one)
        if handle.path.rpartition("/")[2] == unique(one.payload):
            return True
        async with self._room, self._translated():
            try:
                found = await self._threads(obstore.head, self._store, handle.path)
                return bool(found["e_tag"] == handle.tag)
            except FileNotFoundError:
                return False

    async def give_back(self, taken: Sequence[Taken], /) -> None:
        self._held.difference_update(_handle(one).path for one in taken)

    async def set_aside(self, taken: Sequence[Taken], /) -> None:
        held = [one for one in taken if _handle(one).path in self._held]
        await self._write(self.promises.aside, [one.payload for one in held])
        await self.complete(held)

    async def aclose(self) -> None:
        self._closed = True
        self._held.clear()
        self._threads.end()

    # --- trouble ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            async with asyncio.timeout(self._limits.answer_ms / 1000):
                yield
        except AlreadyExistsError:
            raise
        except TimeoutError as error:
            self._failed_at = asyncio.get_running_loop().time()
            raise self._trouble(f"did not answer within {self._limits.answer_ms} ms") from error
        except (BaseError, OSError) as error:
            self._failed_at = asyncio.get_running_loop().time()
            raise self._meant(str(error)) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise Misconfigured(  # its way of saying that a setting is no URL
                f"{self._called}: obstore gave up ({error}). Nothing was handed over. Look at "
                "AWS_ENDPOINT, AWS_REGION and what else begins with AWS_ in the environment."
            ) from error

    def _meant(self, text: str) -> UnspoolError:
        code = code_in(text)
        if code in OPERATOR:
            return Misconfigured(
                f"{self._called}: {OPERATOR[code]} ({code}). Nothing was handed over. Look at the "
                f"URL, AWS_REGION and AWS_ACCESS_KEY_ID, and try: {self._command}"
            )
        if code in FULL:
            return Full(
                f"{self._called} takes no more ({code}). It was not handed over. Make room there."
            )
        first = text.partition("\n")[0].partition(" - ")[2] or text.partition("\n")[0]
        return self._trouble(f"cannot be used: {code or first[:200]}")

    def _trouble(self, what: str) -> Unavailable:
        return Unavailable(
            f"{self._called} {what}. What it has, it keeps; what was under way may or may not be "
            f"there, and is safe to hand over again. Try: {self._command}"
        )

    def _must_be_open(self) -> None:
        if self._closed:
            raise Unavailable("the queue was closed. Nothing was handed over. Open another.")


def _handle(one: Taken) -> _Handle:
    assert isinstance(one.handle, _Handle)
    return one.handle


def open_s3(url: str, *, limits: Limits | None = None) -> S3Queue:
    """Raises `Misconfigured`, `Missing`."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError as error:
        raise Missing(
            "S3 needs obstore, which is not installed. Nothing was opened. Install it: "
            "pip install 'unspool[s3]'"
        ) from error
    try:
        found = urlsplit(url)
        options = dict(parse_qsl(found.query, True, strict_parsing=bool(found.query)))
    except ValueError:
        raise _misconfigured(url, "it cannot be read") from None
    bucket, prefix = found.netloc, found.path.strip("/") or PREFIX
    if not _is_bucket(bucket):
        raise _misconfigured(url, "a bucket's name has small letters, digits, dots and dashes only")
    if not _is_prefix(prefix) or len(prefix) > 500:
        raise _misconfigured(url, "a prefix has letters, digits and . _ - / only")
    origin = options.pop("endpoint", None)
    region = options.pop("region", None)
    if origin is not None and not _is_origin(origin):
        raise _misconfigured(url, "endpoint is http:// or https://, a host and a port")
    if region is not None and not _is_region(region):
        raise _misconfigured(url, "a region is a name such as eu-central-1")
    survives = options.pop("survives", "nothing" if origin else "machine").upper()
    if options or found.fragment or survives not in Survives.__members__:
        raise _misconfigured(
            url, "behind ? there is only endpoint=URL, region=NAME and survives=process, power or "
            "machine"
        )  # fmt: skip
    limits = limits or Limits()
    config: dict[str, Any] = {"endpoint": origin} if origin else {}
    if region:
        config["region"] = region
    try:
        store = S3Store(
            bucket,
            client_options={
                "allow_http": (origin or "").startswith("http://"),
                "connect_timeout": timedelta(milliseconds=limits.connect_ms),
                "timeout": timedelta(milliseconds=limits.answer_ms),
            },
            # We are asked again by those who know better whether they still want it.
            retry_config={"max_retries": 0},
            **config,
        )
    except (BaseError, ValueError) as error:  # what is in the URL, or in AWS_… around it
        raise _misconfigured(url, str(error).partition("\n")[0]) from error
    elsewhere = os.environ.get("AWS_ENDPOINT", "")  # which obstore heeds, and `aws` does not
    there = {"endpoint": elsewhere} if _is_origin(elsewhere) else {}
    return S3Queue(
        store,
        called=f"{bucket}/{prefix}",
        look=listing(f"{bucket}/{prefix}", there | config),
        prefix=prefix,
        survives=Survives[survives],
        limits=limits,
    )


def _misconfigured(url: str, why: str) -> Misconfigured:
    return Misconfigured(
        f"{concealed(url)!r} names no place in S3: {why}. Nothing was opened. Write: s3://bucket/prefix"
    )
