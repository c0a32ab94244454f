"""The service that is asked: what it must offer, and how it is told what to do.

    service = Service(url="http://127.0.0.1:8000")                       the shipped counter service
    service = Service(url=…, post="/orders", count="/orders/count")      anybody's
    orders = Orders(service); order = await orders.make("slow")
    reply = await order.post("k1"); n = await order.count()

**The contract**, for a server that is not ours: `post` is a target whose POST has an effect that is
counted, and `count` a target whose GET tells the number, as a bare number or as JSON with a member
`count`. That is enough for most rows. Rows that need more (a cookie, 204, a slow answer…) need a
target for each: NEEDS names them and says what a POST to them must do; one that is not offered
makes its rows `not asked`. The rows then run one after the other, since they share one count.

The shipped counter service (`unspool.testing.counter`) is told by its query what to do, counts each
row apart, and offers everything but what its place cannot.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import msgspec

from ...core.message import Value
from .wire import Fields, Reply, Sending, Unanswered, Wire


class Need(Value, frozen=True):
    """Something that a target of the server must do."""

    sentence: str
    steps: tuple[Mapping[str, Any], ...] = ()
    """How the shipped counter service is told; empty: it is not told by steps."""
    offer: str = ""
    """What the shipped service must offer for it, beside steps."""


CREATED: Final = {"status": 201}
SOON: Final = ["Retry-After", "1"]
DOWN: Final = {"status": 503, "fields": [SOON]}
GZIP: Final = "H4sIAAAAAAACA8tIzcnJVyjPL8pJUQQAbcK0AwwAAAA="
BINARY: Final = "AAECA4CB/v8NCg0KAP8="
SLOW_MS: Final = 1_000
LONGER_MS: Final = 4_200
LASTS: Final = {"delay_ms": 10_000, "lasts": True}
STREAM_KIB: Final = 80
LARGE_BYTES: Final = 2 * 1024 * 1024


def _once(status: int) -> Need:
    return Need(f"answers {status} the first time, 201 after", ({"status": status}, CREATED))


def _always(status: int) -> Need:
    return Need(f"answers {status}, always", ({"status": status},))


def _says(text: str, what: str) -> Need:
    field = ["Content-Type", "application/json"]
    return Need(f"answers 200 with {what}", ({"status": 200, "text": text, "fields": [field]},))


NEEDS: Final[dict[str, Need]] = {
    "count": Need("has an effect, answers 2xx", (CREATED,)),
    "fields": Need(
        "answers 201 with Location, ETag and Content-Type",
        ({"text": "<a/>", "fields": [
            ["Location", "/things/7"], ["ETag", '"v7"'],
            ["Content-Type", "application/vnd.thing+xml; charset=utf-8"],
            ["Access-Control-Expose-Headers", "Idempotent-Replayed"],
        ]},),
    ),
    "cookie": Need(
        "answers 201 and sets a cookie",
        ({"fields": [["Set-Cookie", "session=secret7; HttpOnly"],
                     ["WWW-Authenticate", "Basic realm=x"]]},),
    ),
    "empty": Need("answers 204", ({"status": 204},)),
    "blank": _says("", "an empty body"),
    "zero": _says("0", "the body `0`"),
    "quotes": _says('""', 'the body `""`'),
    "list": _says("[]", "the body `[]`"),
    "null": _says("null", "the body `null`"),
    "binary": Need(
        "answers with bytes that are no text",
        ({"base64": BINARY, "fields": [["Content-Type", "application/octet-stream"]]},),
    ),
    "gzip": Need(
        "answers with Content-Encoding: gzip",
        ({"base64": GZIP, "fields": [["Content-Encoding", "gzip"],
                                     ["Content-Type", "text/plain"]]},),
    ),
    "charset": Need(
        "answers JSON with a charset and letters beyond ASCII",
        ({"text": '{"für": "Übermut"}',
          "fields": [["Content-Type", "application/json; charset=utf-8"]]},),
    ),
    "slow": Need(f"takes {SLOW_MS} ms", ({"delay_ms": SLOW_MS},)),
    "longer": Need(
        f"takes {LONGER_MS} ms: longer than `short` keeps keys", ({"delay_ms": LONGER_MS},)
    ),
    "stream": Need(
        f"answers with a stream of {STREAM_KIB} KiB", ({"chunks": STREAM_KIB},)
    ),
    "large": Need("answers with more than is kept (2 MiB)", ({"size": LARGE_BYTES},)),
    "402": _always(402),
    "404": _always(404),
    "409": _always(409),
    "422": _always(422),
    "once-401": _once(401),
    "once-403": _once(403),
    "once-408": _once(408),
    "once-425": _once(425),
    "once-429": Need(
        "answers 429 with Retry-After: 1 the first time, 201 after",
        ({"status": 429, "fields": [SOON]}, CREATED),
    ),
    "once-500": _once(500),
    "raise-once": Need("raises the first time, before any effect", ({"raises": True}, CREATED)),
    "slow-raise": Need(
        f"takes {SLOW_MS} ms and raises the first time; slow and 201 after",
        ({"delay_ms": SLOW_MS, "raises": True}, {"delay_ms": 300}),
    ),
    "effect-raise": Need(
        "tells its middleware that there was an effect, then raises; 201 after",
        ({"effect": True, "raises": True}, CREATED), "effect",
    ),
    "valid": Need(
        'refuses a body without the member "amount" with 422, before it does anything',
        ({"valid": "amount"},),
    ),
    "down": Need(
        "answers 503 with Retry-After: 1 three times, 201 after", (DOWN, DOWN, DOWN, CREATED)
    ),
    "down-twice": Need(
        "answers 503 with Retry-After: 1 twice, 201 after", (DOWN, DOWN, CREATED)
    ),
    "dead": Need("answers 503 with Retry-After: 1, always", (DOWN,)),
    "advice": Need(
        "answers 402 with Stripe-Should-Retry: false",
        ({"status": 402, "fields": [["Stripe-Should-Retry", "false"]]},),
    ),
    "paths": Need("has a target for each {subject}", (CREATED,), "paths"),
    "revoke": Need("takes the caller's rights away", offer="revoke"),
}  # fmt: skip

MOUNTS: Final[dict[str, str]] = {
    "required": "a key is required there",
    "short": "answers are kept for 1 s and keys for 3 s there",
}
"""Parts of a server that are set up otherwise, each with a URL of its own."""
SHORT_ANSWER_S: Final = 1.0
SHORT_KEY_S: Final = 3.0

CALLERS: Final[dict[str, str]] = {
    "other": "fields that make a request another caller's",
    "renewed": "fields that make it the same caller's, with another token",
    "odd": "callers whose scope cannot be told",
}
PLACES: Final[dict[str, str]] = {
    "parks": "it saves what fails, answers 202 with a Location, and sends it again",
    "lifetime": "it takes Unspool-Lifetime, and its address tells `waiting` from `bounced`",
    "limit": "it refuses request bodies beyond a limit",
    "processes": "its processes can be killed, paused and counted: not over HTTP",
    "inside": "it is about the code or the store, not the wire",
}

ITEM: Final = b'{"item":"tea","amount":7}'


class Service(Value, frozen=True):
    """A server to be asked, and how. Empty texts and mappings are not offered."""

    url: str
    post: str = ""
    """The target of the counted POST, which may hold `{subject}`; empty: the shipped service."""
    count: str = ""
    """The target that tells the count, which may hold `{subject}`."""
    counts: str = ""
    """Where the count is asked, if not at `url`: the service behind a relay."""
    routes: Mapping[str, str] = {}
    """Need: the target that does it."""
    mounts: Mapping[str, str] = {}
    """Mount: the URL of that part."""
    caller: Fields = (("Authorization", "Bearer alice.1"),)
    other: Fields = (("Authorization", "Bearer bob.1"),)
    renewed: Fields = (("Authorization", "Bearer alice.2"),)
    body: bytes = ITEM
    other_body: bytes = b'{"item":"coffee","amount":9}'
    media: str = "application/json"
    parks: bool = False
    lifetime: bool = False
    limit: int = 1024 * 1024
    """Above so many bytes a request body is refused; 0: it is not said."""
    key_max: int = 255
    retention: str = ""
    """The target of a document that says how long keys are kept, where no field says so."""
    offers: tuple[str, ...] = ()
    """What the shipped service says that it offers: asked by `discovered`."""

    @property
    def ours(self) -> bool:
        return not self.post

    @property
    def apart(self) -> bool:
        """Is each subject counted for itself?"""
        return self.ours or ("{subject}" in self.post and "{subject}" in self.count)


class NotOffered(Exception):
    """The server cannot be asked this."""


class Unfit(Exception):
    """The server does not keep the contract: it cannot be asked anything."""


def offers(service: Service, need: str) -> bool:
    """Can this be asked of the service?"""
    if need in NEEDS:
        if not service.ours:
            known = need == "count" or (need == "paths" and service.apart)
            return known or bool(service.routes.get(need))
        return NEEDS[need].offer in ("", *service.offers)
    if need in MOUNTS:
        return need in service.mounts
    if need == "odd":
        return service.ours and "revoke" in service.offers
    if need in CALLERS:
        return bool(getattr(service, need))
    return bool(getattr(service, need, False))


async def discovered(service: Service) -> Service:
    """The service, with what it says of itself. Raises `Unfit`."""
    wire = Wire(service.url)
    target = "/counter" if service.ours else service.count.replace("{subject}", "probe")
    try:
        reply = await wire.ask(Sending("GET", target, service.caller))
    except Unanswered as error:
        raise Unfit(f"{service.url}{target}: {error}") from error
    if not service.ours:
        if number_in(reply) is None:
            raise Unfit(f"{service.url}{target} tells no count: {reply}")
        return service
    try:
        found = msgspec.json.decode(reply.body, type=_Offered)
    except msgspec.MsgspecError:
        raise Unfit(
            f"{service.url}{target} is not the counter service ({reply}). Name the target of a"
            " POST that is counted, and the one that tells the count."
        ) from None
    mounts = {name: f"{service.url.rstrip('/')}/{name}" for name in found.mounts}
    return msgspec.structs.replace(
        service, offers=tuple(found.offers), mounts={**mounts, **service.mounts}
    )


class _Offered(msgspec.Struct):
    counter: int
    offers: list[str] = []
    mounts: list[str] = []


def number_in(reply: Reply) -> int | None:
    """A bare number, or the member `count` of a JSON object."""
    if not 200 <= reply.status < 300:
        return None
    text = reply.body.decode("latin-1").strip()
    if re.fullmatch(r"[0-9]{1,15}", text):
        return int(text)
    try:
        return msgspec.json.decode(reply.body, type=_Counted).count
    except msgspec.MsgspecError:
        return None


class _Counted(msgspec.Struct):
    count: int


class Order:
    """One subject at one server: something to be done once for each key."""

    def __init__(
        self, service: Service, need: str, subject: str, *, lasts: bool, wire: Wire, counts: Wire
    ) -> None:
        self.service: Final = service
        self.subject: Final = subject
        self._wire: Final = wire
        self._counts: Final = counts
        self._before = 0
        if service.ours:
            steps = (LASTS, CREATED) if lasts else NEEDS[need].steps or ({},)
            self.target = f"/count/{subject}?do={quote(msgspec.json.encode(steps), safe='')}"
            self.count_target = f"/count/{subject}"
        else:
            target = service.routes.get(need) or service.post
            self.target = target.replace("{subject}", subject)
            self.count_target = service.count.replace("{subject}", subject)

    async def begin(self) -> None:
        self._before = await self._number()

    async def count(self) -> int:
        """Effects since this order was made."""
        return await self._number() - self._before

    async def _number(self) -> int:
        if (number := number_in(reply := await self.told())) is None:
            raise Unfit(f"{self.count_target} tells no count: {reply}")
        return number

    async def told(self) -> Reply:
        """What the service says of the count."""
        return await self._counts.ask(Sending("GET", self.count_target, self.service.caller))

    async def end(self) -> None:
        """The run that lasts has lasted long enough. That of others takes the time it takes."""
        if self.service.ours:
            await self._counts.ask(
                Sending("PUT", f"{self.count_target}/ended", self.service.caller)
            )

    async def look(self, *, method: str = "GET", key: str = "") -> Reply:
        fields = [*self.service.caller, *((("Idempotency-Key", key),) if key else ())]
        return await self._wire.ask(Sending(method, self.count_target, fields))

    def sending(
        self,
        *keys: str | bytes,
        body: bytes | None = None,
        caller: Fields | None = None,
        fields: Fields = (),
        media: str = "",
        method: str = "POST",
        more: str = "",
    ) -> Sending:
        """A request with these Idempotency-Key fields, as they are. `more` goes onto the target."""
        caller = self.service.caller if caller is None else caller
        head: list[tuple[str, str | bytes]] = [
            *caller,
            ("Content-Type", media or self.service.media),
            *fields,
            *(("Idempotency-Key", key) for key in keys),
        ]
        body = self.service.body if body is None else body
        return Sending(method, self.target + more, head, body)

    async def post(self, *keys: str | bytes, **how: Any) -> Reply:
        return await self._wire.ask(self.sending(*keys, **how))

    async def walk_away(self, *keys: str | bytes, until: Awaitable[None]) -> None:
        await self._wire.walk_away(self.sending(*keys), until=until)

    async def break_off(self, *keys: str | bytes) -> None:
        await self._wire.break_off(self.sending(*keys))

    async def get(self, target: str) -> Reply:
        """Any other target of the server: a receipt, a document."""
        return await self._wire.ask(Sending("GET", target, self.service.caller))


class Orders:
    """What a row is given: orders at the service."""

    def __init__(self, service: Service) -> None:
        self.service: Final = service
        self._wires: dict[str, Wire] = {}

    async def make(
        self, need: str = "count", *, mount: str = "", subject: str = "", lasts: bool = False
    ) -> Order:
        """`lasts`: the first run takes until `end`, at the shipped service."""
        service = self.service
        for each in (need, *((mount,) if mount else ())):
            if not offers(service, each):
                raise NotOffered(each)
        url = service.mounts[mount] if mount else service.url
        counts = service.counts or url
        order = Order(
            service,
            need,
            subject or f"s{uuid4().hex[:20]}",
            lasts=lasts,
            wire=self._wires.setdefault(url, Wire(url)),
            counts=self._wires.setdefault(counts, Wire(counts)),
        )
        await order.begin()
        return order

    async def revoke(self, name: str) -> None:
        """Take a caller's rights away, at the shipped service."""
        wire = self._wires.setdefault(self.service.url, Wire(self.service.url))
        await wire.ask(Sending("PUT", f"/callers/{name}/revoked", self.service.caller))
