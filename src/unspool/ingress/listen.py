"""Listen: where the door opens, as values, and their sockets.

    listener("127.0.0.1:8700")          one address; `[::1]:8700` in IPv6, names are looked up
    listener(":8700")                   every address of this machine
    listener("unix:/run/unspool.sock")  a unix socket; the file is removed at the end
    listener("systemd")                 what systemd (LISTEN_FDS) has opened already

A socket file that nobody answers on is a leftover and is replaced; one that somebody answers on is
in use. With `reuse_port` several workers listen on one address and the kernel shares out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import ssl
import stat
from typing import Final

from ..core.message import Value
from ..errors import CannotCreate, Misconfigured

SYSTEMD_FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

_ADDRESS: Final = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]/]*)):([0-9]{1,5})")


class Listener(Value, frozen=True, kw_only=True):
    """Where to listen. Made by `listener`."""

    text: str
    """As it was written."""
    host: str = ""
    """Empty means every address."""
    port: int = 0
    path: str = ""
    """Of a unix socket."""
    systemd: bool = False
    tls: ssl.SSLContext | None = None
    mode: int = 0o660
    """Permissions of a unix socket's file."""
    reuse_port: bool = False


class Opened(Value, frozen=True, kw_only=True):
    """A listening socket."""

    socket: socket.socket
    address: str
    tls: ssl.SSLContext | None = None
    path: str = ""
    """Of the file to remove at the end; empty if there is none of ours."""
    inode: tuple[int, int] = (0, 0)

    def close(self) -> None:
        """Close it. Its file goes too, unless somebody else's has taken its place."""
        self.socket.close()
        if self.path:
            with contextlib.suppress(OSError):
                if _inode(self.path) == self.inode:
                    os.unlink(self.path)


def listener(
    text: str,
    *,
    tls: ssl.SSLContext | None = None,
    mode: int = 0o660,
    reuse_port: bool = False,
) -> Listener:
    """Read an address. Raises Misconfigured."""
    if text == "systemd":
        return Listener(text=text, systemd=True, tls=tls)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path or len(os.fsencode(path)) > 107:
            raise _bad(text, "a unix socket needs a path of at most 107 bytes")
        return Listener(text=text, path=path, mode=mode, tls=tls)
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise _bad(text, "it is none of host:port, [address]:port, :port, unix:/path and systemd")
    port = int(found[3])
    if port > 65535:
        raise _bad(text, "ports end at 65535")
    host = found[1] or found[2] or ""
    return Listener(text=text, host=host, port=port, tls=tls, reuse_port=reuse_port)


def _bad(text: str, why: str) -> Misconfigured:
    return Misconfigured(
        f"Cannot listen on {text!r}: {why}. Nothing was opened. "
        "Write, for example, --listen 127.0.0.1:8700."
    )


def open_listener(where: Listener) -> list[Opened]:
    """Bind and listen. Several sockets where systemd has given several or a name means several."""
    if where.systemd:
        return _inherited(where)
    if where.path:
        return [_open_unix(where)]
    return _open_tcp(where)


def _cannot(where: Listener, error: OSError, advice: str) -> CannotCreate:
    trouble = CannotCreate(
        f"Cannot listen on {where.text}: {error.strerror or error}. Nothing was opened. {advice}"
    )
    trouble.__cause__ = error
    return trouble


def _open_tcp(where: Listener) -> list[Opened]:
    if not where.host:
        return [_bind_tcp(where, *_every_address(where.port))]
    try:
        found = socket.getaddrinfo(
            where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise _bad(where.text, f"the name {where.host!r} is not known ({error})") from error
    opened: list[Opened] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            if where.port == 0 and opened:  # each would get a port of its own
                break
            opened.append(_bind_tcp(where, family, address))
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened


def _every_address(port: int) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    if socket.has_dualstack_ipv6():
        return socket.AF_INET6, ("::", port, 0, 0)
    return socket.AF_INET, ("0.0.0.0", port)


def _bind_tcp(where: Listener, family: int, address: tuple[object, ...]) -> Opened:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if where.reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            only = 0 if not where.host else 1
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        listening.bind(address)
        listening.listen(socket.SOMAXCONN)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise _cannot(where, error, _advice(where, error)) from error
    return Opened(socket=listening, address=_address(listening, where.tls), tls=where.tls)


def _advice(where: Listener, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            "Another program, perhaps another unspool, listens there: stop it, or choose another "
            f"port. `ss -ltnp 'sport = :{where.port}'` names it."
        )
    if error.errno == errno.EACCES:
        return (
            "Ports below 1024 need a privilege: choose a higher one, let systemd open it "
            "(--listen systemd), or grant CAP_NET_BIND_SERVICE."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "This machine does not have that address; `ip address` lists those it has."
    return "Choose another address."


def _address(listening: socket.socket, tls: ssl.SSLContext | None) -> str:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'http' if tls is None else 'https'}://{host}:{name[1]}"


# unix sockets


def _inode(path: str) -> tuple[int, int]:
    status = os.stat(path, follow_symlinks=False)
    return status.st_dev, status.st_ino


def _open_unix(where: Listener) -> Opened:
    path = where.path
    _remove_leftover(where)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Permissions are narrow from the first moment on: chmod alone would come too late.
        before = os.umask(0o777 & ~where.mode)
        try:
            listening.bind(path)
        finally:
            os.umask(before)
        os.chmod(path, where.mode)
        listening.listen(socket.SOMAXCONN)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        advice = (
            "Another program listens there: stop it, or choose another path."
            if error.errno == errno.EADDRINUSE
            else f"Is there a folder {os.path.dirname(path) or '.'!r}, and may we write in it?"
        )
        raise _cannot(where, error, advice) from error
    return Opened(
        socket=listening, address=f"unix:{path}", tls=where.tls, path=path, inode=_inode(path)
    )


def _remove_leftover(where: Listener) -> None:
    """Remove a socket file that nobody answers on. Anything else stays."""
    try:
        status = os.stat(where.path, follow_symlinks=False)
    except OSError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        error = OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        raise _cannot(where, error, "It is no socket, so it was left alone: choose another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(1)
        try:
            asking.connect(where.path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(where.path)
        except OSError:
            return  # bind will say what is wrong


# systemd


def _inherited(where: Listener) -> list[Opened]:
    """sd_listen_fds(3): LISTEN_FDS sockets from descriptor 3 on, if LISTEN_PID names us."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or count == "0":
        raise Misconfigured(
            "Cannot listen on systemd's sockets: there are none (LISTEN_PID and LISTEN_FDS do not "
            "name any for this process). Nothing was opened. Start it through a .socket unit, or "
            "write an address: --listen 127.0.0.1:8700."
        )
    opened: list[Opened] = []
    for fd in range(SYSTEMD_FIRST_FD, SYSTEMD_FIRST_FD + int(count)):
        try:
            os.set_inheritable(fd, False)
            listening = socket.socket(fileno=fd)
        except OSError as error:
            raise _cannot(where, error, f"Descriptor {fd} is not a socket.") from error
        if listening.type != socket.SOCK_STREAM:
            raise Misconfigured(
                f"Cannot listen on systemd's descriptor {fd}: it is not a stream socket. "
                "Nothing was opened. Write ListenStream= in the .socket unit."
            )
        listening.setblocking(False)
        address = _address(listening, where.tls)
        opened.append(Opened(socket=listening, address=address, tls=where.tls))
    return opened
