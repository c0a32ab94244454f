"""Settings: every setting once. This file is the only place where one is named.

    Settings        the values, typed and frozen: what the rest of the program is given
    SETTINGS        the same as a table: name, kind, unit, default, section, one sentence

A setting is one annotated field of `Settings`: its name, type and default are the field's, the rest
stands in `Says`. From that come the flag (`--window-max`), the variable (`UNSPOOL_WINDOW_MAX`), the
key of the file (`window_max`), `unspool config --defaults` and docs/reference/settings.md. To add a
setting, add a field.

    shown(setting, value)   a value as one writes it        commented()   a whole file of defaults

A name that ends in `_ms` is a duration and takes `30s`, `5m`, `24h`, `5d`; one that ends in
`_bytes` takes `64KiB`, `1MiB`. `config.py` reads them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec

from .core.urls import concealed

SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
KIB: Final = 1024
MIB: Final = 1024 * KIB

WHERE: Final = "Where"
CUSTODY: Final = "Custody"
KEYS: Final = "Keys and answers"
DOOR: Final = "The door"
OUT: Final = "The way out"
DELIVERY: Final = "Delivery"
LOG: Final = "Log"

Kind = Literal["number", "fraction", "switch", "text", "list", "choice"]


class Says(msgspec.Struct, frozen=True):
    """What a field of `Settings` cannot say by its name, type and default."""

    section: str
    text: str
    unit: str = ""
    """Filled in for `_ms` and `_bytes`."""
    least: float = 0
    most: float = 2**53 - 1
    form: str = ""
    """The shape of a text: a name in `config.FORMS`."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The effective value of every setting."""

    to: Annotated[
        tuple[str, ...],
        Says(WHERE, "The service behind the relay, as http:// or https:// with host and port; "
             "several are servers of one service.", form="base"),
    ] = ()  # fmt: skip
    destination: Annotated[
        tuple[str, ...],
        Says(WHERE, "What messages and keys call the service, so that its servers can change; the "
             "first of `to` unless set. Further names are former ones: what waits under them is "
             "delivered too.", form="name"),
    ] = ()  # fmt: skip
    listen: Annotated[
        tuple[str, ...],
        Says(WHERE, "Where the relay listens: host:port, unix:/path, or systemd for the sockets "
             "it passes.", form="address"),
    ] = ("127.0.0.1:8700",)  # fmt: skip
    spool: Annotated[
        tuple[str, ...],
        Says(WHERE, "Where messages are kept: sqlite, leveldb, log, postgres, redis, nats or "
             "memory. sqlite:///name is relative to the working folder, sqlite:////name is "
             "absolute. Of several the next takes what the one before cannot.", form="spool"),
    ] = ("sqlite:///unspool.db",)  # fmt: skip
    collect: Annotated[
        tuple[str, ...],
        Says(WHERE, "Queues to collect handed-over messages from, beside what comes to the door: "
             "gearman://host:4730/function, amqp://host/?queue=name or s3://bucket/prefix. The "
             "first worker does it.", form="queue"),
    ] = ()  # fmt: skip
    workers: Annotated[
        int, Says(WHERE, "Processes that share the listeners and the spool.", least=1, most=256)
    ] = 1

    survives: Annotated[
        Literal["nothing", "process", "power", "machine"],
        Says(CUSTODY, "The least that a message must outlive before the relay takes custody; a "
             "spool that gives less makes it refuse."),
    ] = "power"  # fmt: skip
    spool_ms: Annotated[
        int,
        Says(CUSTODY, "With several spools: how long one may take before it counts as down and the "
             "next is asked.", least=10),
    ] = 3 * SECOND  # fmt: skip
    lifetime_ms: Annotated[
        int,
        Says(CUSTODY, "How long delivery is tried before a message bounces; a sender may ask for "
             "less.", least=1),
    ] = 5 * DAY  # fmt: skip
    body_max_bytes: Annotated[
        int, Says(CUSTODY, "Larger request bodies stream through without custody.")
    ] = MIB
    repeat: Annotated[
        Literal["keyed", "always"],
        Says(CUSTODY, "Which requests may be sent again after they may have been applied: "
             "idempotent methods and those with an Idempotency-Key, or all."),
    ] = "keyed"  # fmt: skip
    wait_max_ms: Annotated[
        int, Says(CUSTODY, "The longest that a sender may wait with Prefer: wait.")
    ] = MINUTE
    backlog_max: Annotated[
        int,
        Says(CUSTODY, "With so many messages waiting, new ones are refused; 0 sets no limit.",
             unit="messages"),
    ] = 0  # fmt: skip
    disk_free_min_bytes: Annotated[
        int, Says(CUSTODY, "With less room than this on the spool's disk, messages are refused.")
    ] = 64 * MIB

    answer_max_bytes: Annotated[
        int, Says(KEYS, "Larger answers are remembered as a fact, without their body.")
    ] = MIB
    answer_keep_ms: Annotated[int, Says(KEYS, "How long an answer can be replayed.")] = 24 * HOUR
    key_keep_ms: Annotated[
        int, Says(KEYS, "How long a key is known after its message has settled.")
    ] = 30 * DAY
    key_max_chars: Annotated[
        int, Says(KEYS, "The longest Idempotency-Key.", unit="characters", least=1, most=1024)
    ] = 255
    scope_fields: Annotated[
        tuple[str, ...],
        Says(KEYS, "Fields that tell callers apart: a key is known only within their values.",
             form="field"),
    ] = ("authorization", "cookie", "x-api-key", "proxy-authorization")  # fmt: skip

    connections_max: Annotated[
        int, Says(DOOR, "Connections open at once; more are answered 503.", least=1)
    ] = 4096
    keepalive_ms: Annotated[
        int, Says(DOOR, "How long an idle connection is kept for the next request.")
    ] = 75 * SECOND
    head_ms: Annotated[
        int, Says(DOOR, "How long the head of a request may take to arrive.", least=1)
    ] = 10 * SECOND
    head_max_bytes: Annotated[
        int, Says(DOOR, "The largest head: request line and fields.", least=1024)
    ] = 32 * KIB
    fields_max: Annotated[int, Says(DOOR, "The most fields in a head.", unit="fields", least=1)] = (
        100
    )
    body_idle_ms: Annotated[
        int, Says(DOOR, "How long a body may pause while it arrives.", least=1)
    ] = 30 * SECOND
    drain_ms: Annotated[
        int, Says(DOOR, "How long a relay that was asked to stop finishes what it has begun.")
    ] = 25 * SECOND
    tls_cert: Annotated[
        str, Says(DOOR, "A PEM file with the certificate chain: listen with TLS.", form="file")
    ] = ""
    tls_key: Annotated[
        str, Says(DOOR, "A PEM file with the private key of tls_cert.", form="file")
    ] = ""

    connect_ms: Annotated[
        int, Says(OUT, "How long a connection to the service may take, TLS included.", least=1)
    ] = 5 * SECOND
    first_byte_ms: Annotated[
        int, Says(OUT, "How long the service may think before its answer begins.", least=1)
    ] = 30 * SECOND
    idle_ms: Annotated[
        int, Says(OUT, "How long an exchange may stand still once it has begun.", least=1)
    ] = 30 * SECOND
    total_ms: Annotated[int, Says(OUT, "How long one attempt may take in all.", least=1)] = MINUTE
    upstream_connections_max: Annotated[
        int, Says(OUT, "Connections to the service open at once.", least=1)
    ] = 256
    upstream_ca: Annotated[
        str,
        Says(OUT, "A PEM file with the authorities to trust for https:// services, instead of the "
             "system's.", form="file"),
    ] = ""  # fmt: skip
    forwarded: Annotated[
        Literal["add", "off"], Says(OUT, "Tell the service who asked, in the field Forwarded.")
    ] = "add"
    via_name: Annotated[
        str, Says(OUT, "The name in the field Via, by which loops are found.", form="token")
    ] = "unspool"

    window_start: Annotated[
        int, Says(DELIVERY, "Attempts at once to a destination to begin with.", least=1)
    ] = 5
    window_max: Annotated[
        int, Says(DELIVERY, "Attempts at once to a destination that does well.", least=1)
    ] = 20
    cohort_max: Annotated[
        float,
        Says(DELIVERY, "Windows' worth of failures in a row before a destination counts as down.",
             unit="windows", least=0.01, most=1000),
    ] = 1.0  # fmt: skip
    attempts_max: Annotated[
        int, Says(DELIVERY, "Attempts from the spool at once, to all destinations.", least=1)
    ] = 100
    backoff_least_ms: Annotated[
        int, Says(DELIVERY, "The shortest wait between two attempts at a message.", least=1)
    ] = SECOND
    backoff_most_ms: Annotated[
        int, Says(DELIVERY, "The longest wait between two attempts at a message.", least=1)
    ] = HOUR
    lease_ms: Annotated[
        int,
        Says(DELIVERY, "The sole right to attempt a message; when its holder dies, another may "
             "try after this.", least=1),
    ] = 90 * SECOND  # fmt: skip

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Says(LOG, "The least that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"],
        Says(
            LOG, "One JSON object a line, or text; auto is text on a terminal and JSON elsewhere."
        ),
    ] = "auto"


class Setting(msgspec.Struct, frozen=True):
    """A row of the table."""

    name: str
    kind: Kind
    default: Any
    section: str
    text: str
    unit: str
    choices: tuple[str, ...]
    least: float
    most: float
    form: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


PREFIX: Final = "UNSPOOL_"

_KINDS: Final[dict[Any, Kind]] = {int: "number", float: "fraction", bool: "switch", str: "text"}


def setting_of(name: str, annotated: Any, default: Any) -> Setting:
    """The row of one field. A type that no setting has had yet is a KeyError here, at import."""
    inner, says = get_args(annotated)
    choices = get_args(inner) if get_origin(inner) is Literal else ()
    kind: Kind = (
        "choice" if choices else "list" if get_origin(inner) is tuple else _KINDS[inner]
    )  # fmt: skip
    unit = says.unit
    if name.endswith("_ms"):
        unit = "ms"
    elif name.endswith("_bytes"):
        unit = "bytes"
    return Setting(
        name=name,
        kind=kind,
        default=default,
        section=says.section,
        text=says.text,
        unit=unit,
        choices=choices,
        least=says.least,
        most=says.most,
        form=says.form,
    )


def _table() -> dict[str, Setting]:
    hints = get_type_hints(Settings, include_extras=True)
    defaults = Settings()
    return {name: setting_of(name, hints[name], getattr(defaults, name)) for name in hints}


SETTINGS: Final[dict[str, Setting]] = _table()
"""Every setting by name, in the order of the documentation."""


# --- values for people ------------------------------------------------------------------------

UNITS: Final[dict[str, dict[str, int]]] = {
    "ms": {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000},
    "bytes": {
        "b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3,
        "kb": 1000, "mb": 1000**2, "gb": 1000**3,
    },
}  # fmt: skip
_WRITTEN: Final = {"ms": ("d", "h", "m", "s"), "bytes": ("GiB", "MiB", "KiB")}
EXAMPLES: Final = {"ms": "30s, 5m or 5d", "bytes": "64KiB or 1MiB"}


def shown(setting: Setting, value: Any) -> str:
    """A value as one would write it in the file: `"5d"`, `20`, `["a", "b"]`."""
    if setting.kind == "number" and value:
        for unit in _WRITTEN.get(setting.unit, ()):
            scale = UNITS[setting.unit][unit.lower()]
            if value % scale == 0:
                return f'"{value // scale}{unit}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(shown(setting, part) for part in value) + "]"
    # JSON's texts, numbers and truths are TOML's too.
    return concealed(msgspec.json.encode(value).decode())


def accepts(setting: Setting) -> str:
    """What may be written for it, in a few words."""
    if setting.kind == "choice":
        return " | ".join(setting.choices)
    if setting.kind == "number" and setting.unit in EXAMPLES:
        return f"{setting.unit}, or {EXAMPLES[setting.unit]}"
    if setting.kind in ("number", "fraction"):
        whole = "whole number" if setting.kind == "number" else "number"
        return f"{whole} of {setting.unit}" if setting.unit else whole
    return {"list": "list of texts", "text": "text", "switch": "true or false"}[setting.kind]


def commented() -> str:
    """A whole unspool.toml: every key, its sentence and its default, commented out."""
    lines = [
        "# unspool.toml: every setting with its default. Take away a # to change one.",
        "# Durations take 500ms, 30s, 5m, 24h, 5d; sizes take 64KiB, 1MiB.",
    ]
    section = ""
    for setting in SETTINGS.values():
        if setting.section != section:
            section = setting.section
            lines += ["", f"# ---- {section} " + "-" * (70 - len(section))]
        lines += ["", f"# {setting.text}", f"# {accepts(setting)}"]
        lines.append(f"#{setting.name} = {shown(setting, setting.default)}")
    return "\n".join(lines) + "\n"
