"""What a URL of a NATS spool says, and why its server could not be reached. Pure. See `open`."""

from __future__ import annotations

import re
import shlex
import ssl
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ...core.message import Value
from ...core.urls import concealed
from ...errors import Misconfigured, Missing, Unavailable
from .records import Names

OPTIONS: Final = (
    "ca", "creds", "max_bytes", "replicas", "storage", "survives", "sync_interval", "tls",
)  # fmt: skip


_bucket_name: Final = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch


class Address(Value, frozen=True):
    """Where, and as whom."""

    servers: tuple[str, ...]
    """host:port"""
    shown: str
    """For people: without a password."""
    tls: bool = False
    """Nothing is said to a server that does not speak it."""
    ca: str | None = None
    """A file with the certificates that are trusted; None: the system's."""
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    """A file."""

    @property
    def cli(self) -> str:
        """How an operator asks these very servers, from a shell. A password stands in
        NATS_PASSWORD, where he has set that; never here."""
        scheme = "tls://" if self.tls else ""
        words = ["nats", "--server", ",".join(f"{scheme}{server}" for server in self.servers)]
        words += ["--tlsca", self.ca] if self.ca else []
        words += ["--creds", self.credentials] if self.credentials else []
        words += ["--user", self.user] if self.user else []
        return shlex.join(words)


class Place(Value, frozen=True):
    """What a URL says."""

    address: Address
    names: Names
    replicas: int = 0
    """0: not said."""
    storage: str = ""
    max_bytes: int = 0
    synced: bool = False
    machine: bool = False


def read_url(url: str) -> Place:
    """Raises `Misconfigured`."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Misconfigured(
            f"{concealed(url)!r} cannot be read: {error}. Nothing was opened. Write:"
            " --spool nats://127.0.0.1:4222/unspool"
        ) from error
    user, at, hosts = parts.netloc.rpartition("@")
    shown = f"nats://{hosts}{parts.path}"
    bucket = parts.path.strip("/")
    if not hosts or not _bucket_name(bucket):
        raise Misconfigured(
            f"{shown!r} names no bucket of a NATS server. Nothing was opened. Write host, port and"
            " a name of letters, digits, - and _: --spool nats://127.0.0.1:4222/unspool"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if strange := sorted(options.keys() - set(OPTIONS)):
        raise Misconfigured(
            f"{shown!r} has an option that is not known: {strange[0]}. Nothing was opened. Known:"
            f" {', '.join(OPTIONS)}. See: docs/howto/nats.md"
        )
    _check_choices(shown, options)
    name, colon, password = user.partition(":")
    try:
        servers = tuple(host if urlsplit(f"//{host}").port else f"{host}:4222"
                        for host in hosts.split(","))  # fmt: skip
        replicas, max_bytes = (int(options.get(key, 0)) for key in ("replicas", "max_bytes"))
    except ValueError as error:
        raise Misconfigured(
            f"{shown!r} has a number that is none ({error}). Nothing was opened. Write, say:"
            " --spool 'nats://127.0.0.1:4222/unspool?replicas=3'"
        ) from error
    return Place(
        address=Address(
            servers=servers, shown=shown,
            tls=options.get("tls") == "yes" or "ca" in options,
            ca=options.get("ca"),
            user=unquote(name) if colon else None, password=unquote(password) if colon else None,
            token=unquote(user) if at and not colon else None,
            credentials=options.get("creds"),
        ),
        names=Names(bucket), replicas=replicas, storage=options.get("storage", ""),
        max_bytes=max_bytes, synced=options.get("sync_interval") == "always",
        machine=options.get("survives") == "machine",
    )  # fmt: skip


def _check_choices(shown: str, options: Mapping[str, str]) -> None:
    choices = {
        "sync_interval": ("always",), "survives": ("machine",), "storage": ("file", "memory"),
        "tls": ("yes", "no"),
    }  # fmt: skip
    for name, known in choices.items():
        if name in options and options[name] not in known:
            raise Misconfigured(
                f"{shown!r} says {name}={options[name]}, which is not known. Nothing was opened."
                f" Known: {', '.join(known)}; leave it out where none of these is so. See:"
                " docs/howto/nats.md"
            )
    if options.get("tls") == "no" and "ca" in options:
        raise Misconfigured(
            f"{shown!r} says whose certificates to trust (ca), and tls=no. Nothing was opened."
            " Leave one of them out. See: docs/howto/nats.md"
        )
    if "survives" in options and "sync_interval" not in options:
        raise Misconfigured(
            f"{shown!r} says survives=machine without sync_interval=always: a power cut that takes"
            " all hosts would take what none has synced. Nothing was opened. Set sync_interval:"
            " always in the servers' jetstream block, and say so: ?sync_interval=always&survives="
            "machine"
        )


def not_connected(address: Address, error: BaseException, complaint: str) -> Exception:
    file = address.credentials
    if file and isinstance(error, FileNotFoundError | PermissionError | ValueError):
        return Misconfigured(
            f"The credentials in {file} for {address.shown} cannot be read ({error}). Nothing was"
            f" opened. Mend ?creds= in --spool, or the file: ls -l {shlex.quote(file)}"
        )
    if isinstance(error, ImportError):
        return Missing(
            f"Credentials in a file, as for {address.shown}, need nkeys, which is not installed."
            " Nothing was opened. Install it: pip install nkeys"
        )
    said = [text for text in (str(error), complaint, type(error).__name__) if text]
    let_in = [text for text in said if re.search("authori|authenti|nkey", text, re.IGNORECASE)]
    text = (let_in or said)[0]
    if let_in:
        return Misconfigured(
            f"The NATS server of {address.shown} does not let us in ({text}). Nothing was opened."
            " Mend the name, password, token or ?creds= file in --spool, and try them:"
            f" {address.cli} account info"
        )
    if isinstance(error, ssl.SSLError):
        return Misconfigured(
            f"TLS with the NATS server of {address.shown} failed ({text}). Nothing was opened, and"
            " nothing was said to it. Trust its certificate (?ca=FILE) and call it by a name that"
            f" stands there, or mend the server, and try it: {address.cli} server check connection"
        )
    return Unavailable(
        f"No NATS server answers for {address.shown} ({text}). Nothing was opened, and nothing is"
        f" lost. See whether it runs: {address.cli} server check connection"
    )
