"""Idempotency as it is often done: right in the small, with one fault at a time.

    uvicorn --factory naive:app       every fault in one server: /f0/…, /f1/…, by FAULTS' order

Without a fault it keeps the rows of the table that one process and a dictionary can keep: the rows
do not ask for our own software. With a fault it is a mistake that somebody has published (they are
in the trackers of ten libraries), and FAULTS says which rows must find it. So no row holds of
everything: for each there is a server of which it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from typing import Any, Final

from unspool.testing.counter.asgi import counter, field, guarded

FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "": (),
    "bytes as they come": ("A2", "A4"),
    "no checks": ("A3", "A5", "A6", "A7"),
    "first of two": ("A5",),
    "plain errors": ("A9", "E3"),
    "never required": ("A9",),
    "merges without a key": ("A10",),
    "every method": ("A11",),
    "put is odd": ("A12",),
    "echoes": ("A13",),
    "runs again": ("A1", "B1", "B9", "E1", "H8"),
    "no mark": ("B2",),
    "few fields": ("B3", "B11"),
    "all fields": ("B4",),
    "not with cookies": ("B5",),
    "old date": ("B6",),
    "falsy is nothing": ("B7",),
    "text only": ("B8",),
    "keeps the last": ("B9",),
    "no fingerprint": ("C1", "C2", "C3", "C7", "C9", "C10"),
    "body only": ("C2", "C3"),
    "glued": ("C9",),
    "raw bytes": ("C4", "C10"),
    "all fields count": ("C5",),
    "body is the key": ("C6",),
    "tells all": ("C7",),
    "late": ("C8",),
    "no scope": ("D1",),
    "scope is the token": ("D2",),
    "scope is optional": ("D4",),
    "outside of authentication": ("D5",),
    "check then act": ("E1", "E5"),
    "no waiting": ("E4",),
    "waiters run": ("E7",),
    "claims early": ("E8",),
    "stuck when it raises": ("F7",),
    "released in any case": ("F8",),
    "stops when the caller goes": ("F9",),
    "success only": ("G1",),
    "stores everything": ("G2", "G3"),
    "stores 409": ("G4",),
    "stuck after 5xx": ("G5",),
    "not when large": ("G6",),
    "413 after": ("G7",),
    "tells nothing of time": ("J1",),
    "one clock": ("J2", "J5"),
    "any age": ("J3", "J4"),
    "kept until swept": ("J6",),
}
"""Fault: the rows that must find it."""

KEPT: Final = {b"set-cookie", b"www-authenticate", b"date", b"content-length", b"keep-alive"}
PASSING: Final = {401, 403, 408, 425, 429}
SHORT: Final = (1.0, 3.0)
LONG: Final = (3600.0, 7200.0)


class Record:
    def __init__(self, print_: str) -> None:
        self.print = print_
        self.done: asyncio.Event = asyncio.Event()
        self.answer: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
        self.at = time.time()
        self.unknown = False
        self.runs = 1


class Naive:
    def __init__(self, app: Any, fault: str) -> None:
        assert fault in FAULTS, fault
        self.app = app
        self.fault = fault
        self.records: dict[str, Record] = {}
        self.tasks: set[asyncio.Task[Any]] = set()

    def has(self, *faults: str) -> bool:
        return self.fault in faults

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        keys = [value for name, value in scope["headers"] if name == b"idempotency-key"]
        method = scope["method"]
        covered = {"POST", "PATCH", *(("GET", "HEAD", "OPTIONS") if self.has("every method") else
                                      ("PUT",) if self.has("put is odd") else ())}  # fmt: skip
        if method not in covered:
            await self.app(scope, receive, send)
            return
        short = scope["path"].startswith("/short")
        if not keys and not self.has("merges without a key", "body is the key"):
            if scope["path"].startswith("/required") and not self.has("never required"):
                await self.say(send, 400, "a key is needed", docs=True)
                return
            await self.app(scope, receive, send)
            return
        name = self.name_of(keys)
        if name is None:
            echo = keys[0].decode("latin-1") if self.has("echoes") else "the key"
            await self.say(send, 400, f"{echo} cannot be read")
            return
        if (refusal := self.age(name)) is not None:
            await self.say(send, refusal, "by its age")
            return
        await self.keyed(scope, receive, send, name, SHORT if short else LONG)

    # --- the key ------------------------------------------------------------------------------

    def name_of(self, keys: list[bytes]) -> str | None:
        if not keys:
            return "none"
        if self.has("no checks", "bytes as they come", "echoes"):
            text = b",".join(keys).decode("latin-1")
            if self.has("no checks"):
                return text.strip('"')
            if self.has("echoes") and re.search("[<;\x01\x7f]", text):
                return None
            return text
        if len(keys) > 1 and not self.has("first of two"):
            return None
        text = keys[0].decode("latin-1").strip()
        if found := re.fullmatch(r'"((?:[ !#-\[\]-~]|\\["\\])*)"(?:;.*)?', text):
            text = found[1].replace('\\"', '"')
        elif not re.fullmatch(r"[!#-+\--~][ !#-+\--~]*", text):
            return None
        return text if len(text.strip()) > 0 and len(text) <= 255 else None

    def age(self, name: str) -> int | None:
        if self.has("any age") or not re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]+", name):
            return None
        at = int(name[:13].replace("-", ""), 16) / 1000
        if at < time.time() - 40 * 86400:
            return 410
        return 400 if at > time.time() + 600 else None

    # --- one request under a key --------------------------------------------------------------

    async def keyed(self, scope: Any, receive: Any, send: Any, name: str, times: Any) -> None:
        caller = scope.get("caller", "")
        authorization = field(scope, b"authorization")
        if caller == "raise" and not self.has("scope is optional"):
            await self.say(send, 500, "who is it?")
            return
        if caller == "nobody" and not self.has("scope is optional"):
            await self.say(send, 403, "nobody")
            return
        if self.has("scope is the token"):
            caller = authorization
        if self.has("no scope", "outside of authentication"):
            caller = ""
        if self.has("claims early"):
            if name in self.records:
                await self.say(send, 409, "it runs", retry=True)
                return
            self.records[name] = Record("")
        body = b""
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        if self.has("claims early"):
            del self.records[name]
        if len(body) > 1024 * 1024 and not self.has("413 after"):
            await self.say(send, 413, "too large")
            return
        if self.has("body is the key"):
            name = body.decode("latin-1") + scope["path"]
        if self.has("merges without a key") and name == "none":
            name = body.decode("latin-1") + scope["path"]
        key = f"{caller}\0{name}"
        print_ = self.print_of(scope, body)
        prefer = re.search(r"wait=(\d+)", field(scope, b"prefer"))
        wait_s = 0 if self.has("no waiting") or not prefer else int(prefer[1])
        record = await self.claim(key, print_, wait_s, send, times)
        if record is None:
            return
        await self.run(record, key, scope, body, send)

    def print_of(self, scope: Any, body: bytes) -> str:
        media = field(scope, b"content-type")
        text = body.decode("latin-1")
        if not self.has("raw bytes"):
            if mark := re.search(r"boundary=(\S+)", media):
                text, media = text.replace(mark[1], ""), "multipart"
            elif "json" in media:
                with contextlib.suppress(ValueError):
                    text = json.dumps(json.loads(body), sort_keys=True)
        target = f"{scope['method']}|{scope['path']}|{scope['query_string'].decode()}"
        if self.has("no fingerprint", "body is the key"):
            return ""
        if self.has("body only"):
            return text
        if self.has("glued"):
            return scope["path"] + text
        if self.has("all fields count"):
            return target + text + repr(sorted(scope["headers"]))
        return f"{target}|{media}|{text}"

    async def claim(
        self, key: str, print_: str, wait_s: int, send: Any, times: Any
    ) -> Record | None:
        """A record that is ours to run; None: it was answered."""
        until = time.time() + wait_s
        while (known := self.records.get(key)) is not None:
            age = time.time() - known.at
            answer_s, key_s = times
            if known.done.is_set() and age > key_s and not self.has("kept until swept"):
                break
            if self.has("one clock") and age > answer_s / 2:
                break
            if known.print != print_ and not (self.has("late") and not known.done.is_set()):
                told = f"not {known.print}" if self.has("tells all") else "another request"
                if self.has("stores 409"):
                    known.answer = (422, [], told.encode())
                await self.say(send, 422, told)
                return None
            if not known.done.is_set():
                if time.time() < until:
                    await asyncio.sleep(0.02)
                    continue
                await self.say(send, 409, "it runs", retry=True)
                return None
            if known.unknown:
                await self.say(send, 409, "nobody knows")
                return None
            if known.answer is None:
                break
            if age > answer_s and not self.has("kept until swept"):
                await self.say(send, 410, "no longer kept")
                return None
            if self.has("runs again"):
                break
            if self.has("falsy is nothing") and known.answer[2] in (b"", b"0", b"[]", b"null"):
                break
            await self.replay(send, known)
            return None
        if self.has("check then act"):
            await asyncio.sleep(0.01)
        if self.has("waiters run") and wait_s:
            return Record(print_)
        record = self.records[key] = Record(print_)
        return record

    async def run(self, record: Record, key: str, scope: Any, body: bytes, send: Any) -> None:
        task = asyncio.ensure_future(self.ran(record, key, scope, body))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if self.has("stops when the caller goes"):
            try:
                await asyncio.wait_for(task, 0.4)
            except TimeoutError:
                self.records.pop(key, None)
                await self.say(send, 504, "too slow")
                return
        status, fields, data = await asyncio.shield(task)
        if len(body) > 1024 * 1024:
            status, fields, data = 413, [], b"too large"
        await self.send(send, status, [*fields, *self.told()], data)

    async def ran(self, record: Record, key: str, scope: Any, body: bytes) -> Any:
        sent: list[Any] = []
        running = Running()

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(event: Any) -> None:
            sent.append(event)

        try:
            await self.app({**scope, "unspool": running}, receive, keep)
            status, fields = sent[0]["status"], sent[0]["headers"]
            data = b"".join(event.get("body", b"") for event in sent[1:])
        except Exception:
            status, fields, data = 500, [], b"it raised"
            if running.affected and not self.has("released in any case"):
                record.unknown = True
            elif not self.has("stuck when it raises"):
                self.records.pop(key, None)
            else:
                return status, fields, data  # nobody is ever told
            record.done.set()
            return status, fields, data
        record.at = time.time()
        if self.kept(status, fields, data):
            record.answer = (status, fields, data)
        elif self.has("stuck after 5xx"):
            return status, fields, data
        else:
            self.records.pop(key, None)
        record.done.set()
        return status, fields, data

    def kept(self, status: int, fields: Any, data: bytes) -> bool:
        if self.has("stores everything"):
            return True
        if self.has("success only") and status >= 300:
            return False
        if self.has("not with cookies") and any(name == b"set-cookie" for name, _ in fields):
            return False
        if self.has("not when large") and len(data) > 64 * 1024:
            return False
        if status == 422 and b'"detail"' in data:
            return False
        return status < 500 and status not in PASSING

    # --- what is said -------------------------------------------------------------------------

    def told(self) -> list[tuple[bytes, bytes]]:
        if self.has("tells nothing of time"):
            return []
        return [(b"idempotency-retention", b"answer=3600, key=7200")]

    async def replay(self, send: Any, record: Record) -> None:
        assert record.answer is not None
        status, fields, data = record.answer
        if self.has("few fields"):
            fields = [each for each in fields if each[0] == b"content-type"]
        elif not self.has("all fields"):
            fields = [each for each in fields if each[0] not in KEPT]
        if self.has("text only"):
            data = data.decode("utf-8", "replace").encode()
        if self.has("keeps the last"):
            data = json.dumps({"now": time.time()}).encode()
        more = [] if self.has("no mark", "put is odd") else [(b"idempotent-replayed", b"true")]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.at)).encode()
        if not self.has("old date"):
            more += [(b"cache-control", b"no-store"), (b"x-answered-at", stamp)]
        await self.send(send, status, [*fields, *more, *self.told()], data)

    async def say(
        self, send: Any, status: int, text: str, *, retry: bool = False, docs: bool = False
    ) -> None:
        plain = self.has("plain errors")
        fields = [(b"content-type", b"text/plain" if plain else b"application/problem+json")]
        if retry and not plain:
            fields.append((b"retry-after", b"1"))
        if docs:
            fields.append((b"link", b'<https://docs.example>; rel="describedby"'))
        await self.send(send, status, fields, json.dumps({"title": text}).encode())

    async def send(self, send: Any, status: int, fields: Any, data: bytes) -> None:
        fields = [each for each in fields if each[0] != b"content-length"]
        if status != 204:
            fields.append((b"content-length", b"%d" % len(data)))
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": data})


class Running:
    affected = False

    def effect(self) -> None:
        self.affected = True


def app() -> Any:
    """Every fault, each under a path of its own."""
    apps = {place_of(fault): behind(f"{os.environ['FOLDER']}/counts.db", fault) for fault in FAULTS}

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        place, _, path = scope["path"][1:].partition("/")
        await apps[place]({**scope, "path": f"/{path}"}, receive, send)

    return routed


def place_of(fault: str) -> str:
    return f"f{list(FAULTS).index(fault)}"


def behind(counts: str, fault: str) -> Any:
    service = counter(counts, offers=("effect", "revoke"), mounts=("required", "short"))
    if fault == "outside of authentication":
        return Naive(guarded(service, counts), fault)
    return guarded(Naive(service, fault), counts)
