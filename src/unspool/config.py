"""Configuration: where each setting's value comes from.

    load(flags, environ, config=…) -> Effective     every value, and where it came from
    candidates(environ)                             where the file may be

A flag goes before a variable, a variable before the file, the file before the default. There is
one file: `--config`, else UNSPOOL_CONFIG, else the first of ./unspool.toml,
$XDG_CONFIG_HOME/unspool/config.toml and /etc/unspool/unspool.toml that exists. Files are not
merged. An empty variable counts as not set.

What is not known is refused, with the nearest name: a typing mistake in a limit must not pass for
that limit. Not our variables, though they may look it: what Kubernetes sets for a service called
unspool (UNSPOOL_PORT=tcp://…), UNSPOOL_CONFIG and UNSPOOL_DEBUG.

Lists are repeated flags, TOML lists, or text with commas. Reads the one file and nothing else.
Raises `Misconfigured`.
"""

from __future__ import annotations

import difflib
import re
import stat
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import msgspec

from .core.message import SKEW_MS
from .core.urls import concealed
from .errors import Misconfigured
from .settings import EXAMPLES, PREFIX, SECOND, SETTINGS, UNITS, Setting, Settings, shown

__all__ = ["Effective", "candidates", "load", "read"]

NOT_OURS: Final = frozenset({"UNSPOOL_CONFIG", "UNSPOOL_DEBUG"})
_KUBERNETES: Final = re.compile(
    r"UNSPOOL_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_PORT: Final = re.compile(r"(tcp|udp|sctp)://")

LEASE_SPARE_MS: Final = 10 * SECOND
"""A lease outlives its attempt by this: clocks differ, and a verdict takes time to be written."""

_NUMBER: Final = re.compile(r"(-?\d+(?:\.\d+)?)\s*([A-Za-z]*)")


class Effective(msgspec.Struct, frozen=True):
    """What holds, and why."""

    settings: Settings
    origins: Mapping[str, str]
    """Of each setting: the flag, the variable, the file, or `default`."""
    file: str
    """The one file that was read; empty where there was none."""


def load(flags: Mapping[str, Any], environ: Mapping[str, str], *, config: str = "") -> Effective:
    """Every setting's value. `flags` holds by name what was given; None or () is not given."""
    path = _file(environ, config)
    written = _read_file(path) if path is not None else {}
    _refuse_unknown(written, where=f"in {path}", known=list(SETTINGS))
    _refuse_unknown(
        _ours(environ), where="in the environment", known=[s.variable for s in SETTINGS.values()]
    )
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, setting in SETTINGS.items():
        if flags.get(name) not in (None, ()):
            origin, raw = setting.flag, flags[name]
        elif environ.get(setting.variable):
            origin, raw = setting.variable, environ[setting.variable]
        elif name in written:
            origin, raw = str(path), written[name]
        else:
            values[name], origins[name] = setting.default, "default"
            continue
        values[name], origins[name] = read(setting, raw, origin=origin), origin
    settings = Settings(**values)
    _agree(settings)
    return Effective(settings=settings, origins=origins, file=str(path or ""))


# --- the file ---------------------------------------------------------------------------------


def candidates(environ: Mapping[str, str]) -> list[Path]:
    """Where a file may be when nobody named one, best first."""
    found = [Path("unspool.toml")]
    if home := environ.get("XDG_CONFIG_HOME"):
        found.append(Path(home, "unspool", "config.toml"))
    elif home := environ.get("HOME"):
        found.append(Path(home, ".config", "unspool", "config.toml"))
    found.append(Path("/etc/unspool/unspool.toml"))
    return found


def _file(environ: Mapping[str, str], config: str) -> Path | None:
    if named := config or environ.get("UNSPOOL_CONFIG", ""):
        if not _is_there(Path(named)):
            given = "--config" if config else "UNSPOOL_CONFIG"
            raise Misconfigured(f"{given} names {named}, and there is no such file")
        return Path(named)
    return next((path for path in candidates(environ) if _is_there(path)), None)


def _is_there(path: Path) -> bool:
    """A pipe will do. What may not be looked at is not passed over: it may set a limit."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read: {error.strerror}") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read: {error.strerror}") from error


def _ours(environ: Mapping[str, str]) -> list[str]:
    return [
        name
        for name, value in environ.items()
        if name.startswith(PREFIX)
        and name not in NOT_OURS
        and not _KUBERNETES.fullmatch(name)
        and not (name.endswith("_PORT") and _KUBERNETES_PORT.match(value))
    ]


def _refuse_unknown(names: Mapping[str, Any] | list[str], *, where: str, known: list[str]) -> None:
    bare = {_bare(name): name for name in known}
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(_bare(name), bare, n=1)
        advice = f"did you mean {bare[near[0]]}?" if near else "`unspool config` lists them all."
        if isinstance(names, Mapping) and isinstance(names[name], dict):
            advice = "settings stand in no [table]."
        raise Misconfigured(f"{name} {where} is no setting: {advice}")


def _bare(name: str) -> str:
    """Without what all of them begin with, which would make all of them alike."""
    return name.lower().replace("-", "_").removeprefix(PREFIX.lower())


# --- one value --------------------------------------------------------------------------------


def read(setting: Setting, raw: Any, *, origin: str) -> Any:
    """The value of `setting` from what somebody wrote, or Misconfigured with what would do."""
    try:
        return _READERS[setting.kind](setting, raw)
    except ValueError as error:
        given = ", ".join(raw) if isinstance(raw, tuple) else str(raw)
        raise Misconfigured(f"{setting.name} = {concealed(given)} ({origin}): {error}") from error


def _number(setting: Setting, raw: Any) -> int:
    units = UNITS.get(setting.unit, {})
    wanted = f"give a whole number of {setting.unit}" if setting.unit else "give a whole number"
    if units:
        wanted += f", or {EXAMPLES[setting.unit]}"
    if isinstance(raw, str):
        raw = _scaled(raw, units)
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise ValueError(wanted)
    return int(_within(setting, raw))


def _scaled(text: str, units: Mapping[str, int]) -> int | None:
    """`1.5h` as milliseconds; None where it is no whole number of them."""
    match = _NUMBER.fullmatch(text.strip())
    scale = units.get(match[2].lower(), 0) if match and match[2] else 1
    value = Decimal(match[1]) * scale if match and scale else None
    return int(value) if value is not None and value == value.to_integral_value() else None


def _fraction(setting: Setting, raw: Any) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise ValueError("give a number")
    try:
        value = float(raw)
    except ValueError:
        raise ValueError("give a number, such as 1.0") from None
    return _within(setting, value)


def _within(setting: Setting, value: float) -> float:
    if not setting.least <= value <= setting.most:
        if value < setting.least:
            raise ValueError(f"give at least {_plain(setting.least)}")
        raise ValueError(f"give at most {_plain(setting.most)}")
    return value


def _plain(limit: float) -> str:
    return f"{limit:g}" if limit < 1e6 else f"{limit:.0f}"


def _switch(setting: Setting, raw: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True,
             "false": False, "no": False, "off": False, "0": False}  # fmt: skip
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in words:
        return words[raw.lower()]
    raise ValueError("give true or false")


def _choice(setting: Setting, raw: Any) -> str:
    if raw not in setting.choices:
        near = difflib.get_close_matches(str(raw), setting.choices, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"give one of {', '.join(setting.choices)}{meant}")
    return str(raw)


def _text(setting: Setting, raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("give a text in quotes")
    return FORMS[setting.form](raw) if raw else raw


def _list(setting: Setting, raw: Any) -> tuple[str, ...]:
    if isinstance(raw, str):
        raw = (raw,)
    if isinstance(raw, tuple):  # flags; a list of a file may have commas in its texts
        parts = [part.strip() for text in raw for part in text.split(",")]
    elif isinstance(raw, list) and all(isinstance(part, str) for part in raw):
        parts = raw
    else:
        raise ValueError("give a list of texts")
    return tuple(FORMS[setting.form](part) for part in parts if part)


_READERS: Final[dict[str, Any]] = {
    "number": _number,
    "fraction": _fraction,
    "switch": _switch,
    "choice": _choice,
    "text": _text,
    "list": _list,
}

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]*):(\d{1,5})")


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        raise ValueError("write an address of IPv6 in brackets: http://[::1]:8000") from None


def _base(text: str) -> str:
    """A service's address. What a path in it would mean, nobody agrees on: so there is none."""
    if text.partition("//")[2].count(":") > 1 and "[" not in text and "@" not in text:
        raise ValueError("write an address of IPv6 in brackets: http://[::1]:8000")
    url = _split(text)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ValueError("give http:// or https://, a host and a port: http://127.0.0.1:8000")
    if "@" in url.netloc:
        raise ValueError(
            "leave out user and password: the sender's own fields are passed on as they are"
        )
    if url.path not in ("", "/") or "?" in text or "#" in text:
        raise ValueError(
            "leave out path and query: the path of each request is passed on as it came"
        )
    try:
        port = url.port
    except ValueError:
        raise ValueError("give a port from 1 to 65535") from None
    if port == 0 or not url.hostname or any(c.isspace() for c in url.netloc):
        raise ValueError("give a host, and a port from 1 to 65535: http://127.0.0.1:8000")
    return f"{url.scheme}://{url.netloc.lower().removesuffix(':')}"


def _address(text: str) -> str:
    if text == "systemd" or (text.startswith("unix:") and len(text) > len("unix:")):
        return text
    match = _ADDRESS.fullmatch(text)
    if not match or int(match[2]) > 65535:
        raise ValueError("give host:port, [address]:port, unix:/path, or systemd")
    return text


def _spool(text: str) -> str:
    if not re.match(r"[a-z][a-z0-9+.-]*:", text):
        raise ValueError(f"give a URL: sqlite:///{text} is a file in the working folder")
    return text


def _queue(text: str) -> str:
    if not re.match(r"[a-z][a-z0-9+.-]*:", text):
        raise ValueError("give a URL of one server, and no comma: gearman://127.0.0.1:4730/orders")
    return text


def _field(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("give names of HTTP fields")
    return text.lower()


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("give one word of letters, digits and -._~")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,200}", text):
        raise ValueError("give a word of at most 200 letters, digits and signs: orders")
    return text


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("give the path of a file")
    return text


FORMS: Final = {
    "base": _base,
    "address": _address,
    "spool": _spool,
    "queue": _queue,
    "field": _field,
    "token": _token,
    "name": _name,
    "file": _path,
}


# --- all values together ----------------------------------------------------------------------


def _agree(s: Settings) -> None:
    """Settings that contradict one another are refused before anything starts."""
    if not s.spool:
        raise Misconfigured("spool is empty: name at least one, such as sqlite:///unspool.db")
    if len({*s.spool}) < len(s.spool):
        twice = next(url for url in s.spool if s.spool.count(url) > 1)
        raise Misconfigured(
            f"spool names {concealed(twice)} twice: a second one is for when the first cannot take"
            " anything. Name another."
        )
    if not s.listen:
        raise Misconfigured("listen is empty: name at least one address, such as 127.0.0.1:8700")
    least = max(s.total_ms + s.connect_ms + LEASE_SPARE_MS, 10 * SKEW_MS)
    if s.lease_ms <= least:
        raise Misconfigured(
            f"lease_ms = {shown(SETTINGS['lease_ms'], s.lease_ms)} is too short: a lease must "
            "outlive its attempt (total_ms + connect_ms + 10s) and clocks that differ (20s). "
            f"Give more than {shown(SETTINGS['lease_ms'], least)}."
        )
    for low, high in _ORDERED:
        if getattr(s, low) > getattr(s, high):
            raise Misconfigured(
                f"{low} = {shown(SETTINGS[low], getattr(s, low))} is more than "
                f"{high} = {shown(SETTINGS[high], getattr(s, high))}: raise {high} or lower {low}"
            )
    if bool(s.tls_cert) != bool(s.tls_key):
        has, lacks = ("tls_cert", "tls_key") if s.tls_cert else ("tls_key", "tls_cert")
        raise Misconfigured(f"{has} is set and {lacks} is not: TLS needs both")


_ORDERED: Final = (
    ("window_start", "window_max"),
    ("backoff_least_ms", "backoff_most_ms"),
    ("answer_keep_ms", "key_keep_ms"),
)
"""The first may not exceed the second."""
