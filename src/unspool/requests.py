"""unspool for requests: an adapter that does not lose requests.

    import requests, unspool.requests

    session = requests.Session()
    adapter = unspool.requests.Adapter(["https://a.example"], outbox="o.db")
    session.mount("https://a.example", adapter)
    try:
        response = session.post(url, json=order, headers={"Idempotency-Key": order.id}, timeout=10)
    except unspool.requests.Saved as saved:
        ...                                        # it will be delivered: saved.key, saved.receipt

A request to one of the servers goes to the one that does best; one to any other origin goes there.
Without servers each origin is on its own. All options of `unspool.Client` may be given.

Cookies, auth, redirects, encodings stay requests' work; `response.unspool` is our result, and where
nobody had it the `Undelivered`. The timeout (of two, the second) is the deadline of the call,
retries included; with none, our `deadline`. urllib3's `Retry` has no place here: the client tries
again itself. `verify=False`, `verify=path`, `cert` and proxies are refused: here it is `tls=`, and
there are no proxies. A body is read whole before it is sent, and an answer before it is given; one
that is too large raises `ChunkedEncodingError` when it is read.

The key under which a request went is in its `Idempotency-Key` afterwards: to send the same object
again (`session.send`) is to repeat it, never to do it twice.
"""

from __future__ import annotations

import email.message
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self, Unpack

from .client.adapter import (
    TOO_LARGE,
    Asked,
    Hops,
    Origins,
    Trouble,
    bounded,
    shown_fields,
    stands,
    trouble,
    trouble_of,
    unknown_text,
    wrong,
)
from .client.blocking import Client
from .client.options import ClientOptions
from .client.results import Response, Unknown
from .errors import Misconfigured, Missing, Saved, Undelivered

try:
    import requests
    import urllib3
    from requests.adapters import BaseAdapter, HTTPAdapter
    from requests.utils import select_proxy
except ModuleNotFoundError as error:
    if error.name not in ("requests", "urllib3"):
        raise
    raise Missing(
        "unspool.requests is for requests, which is not installed. Install it: pip install requests"
    ) from error

__all__ = ["Adapter", "Saved"]

READ_BYTES: Final = 64 * 1024

ERRORS: Final[Mapping[Trouble, type[requests.RequestException]]] = {
    Trouble.CONNECT: requests.ConnectionError,
    Trouble.CONNECT_TIMEOUT: requests.ConnectTimeout,
    Trouble.READ: requests.ConnectionError,
    Trouble.READ_TIMEOUT: requests.ReadTimeout,
}


class Adapter(BaseAdapter):
    """For `session.mount`."""

    def __init__(self, servers: str | Sequence[str] = (), **options: Unpack[ClientOptions]) -> None:
        """Raises `Misconfigured`. Nothing is opened before the first request."""
        super().__init__()
        self._origins: Final = Origins(Client, servers, options)
        self._hops: Final = Hops()
        self._own_tls: Final = options.get("tls") is not None
        self._theirs: Final = HTTPAdapter()

    @property
    def client(self) -> Client:
        """The client of the named servers: its outbox, its statistics."""
        return self._origins.named

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Raises `Saved`; requests' errors; `Misconfigured`, `Unacceptable` with nothing sent."""
        self._check(request.url or "", verify, cert, proxies)
        head = asked_of(request, timeout)
        client = self._origins.borrow(head.origin)
        try:
            body = body_of(request, client.options.body_max_bytes)
            asked = Asked(head.method, head.url, head.fields, body, head.deadline)
            built = asked.build(client, self._hops)
            if built.minted and built.keyed:
                request.headers["Idempotency-Key"] = f'"{built.key}"'
            try:
                result = client.send(built)
            except Undelivered as error:
                if not isinstance(error.response, Response):
                    raise ERRORS[trouble_of(error)](str(error), request=request) from error
                return self._made(request, error.response, error)
            found = stands(result, request=request)
            if found is None:
                assert isinstance(result, Unknown)
                kind = trouble(result.tries, maybe=True)
                raise ERRORS[kind](unknown_text(result), request=request)
            self._hops.saw(asked, asked.key or built.key, found)
            return self._made(request, found, result)
        finally:
            for one in self._origins.give_back(head.origin):
                one.close()

    def _check(self, url: str, verify: Any, cert: Any, proxies: Any) -> None:
        """What cannot be done as asked is not done otherwise."""
        if select_proxy(url, dict(proxies or {})):
            raise Misconfigured(
                f"{url} is to go through a proxy, and unspool uses none. Nothing was sent. For this"
                " address set none, or mount no unspool: session.trust_env = False"
            )
        if url.startswith("https:") and not self._own_tls and (verify is not True or cert):
            raise Misconfigured(
                "verify= and cert= are not for this adapter. Nothing was sent. Give it an"
                " SSLContext: Adapter(…, tls=ssl.create_default_context(cafile=…))"
            )

    def _made(
        self, request: requests.PreparedRequest, answer: Response, ours: object
    ) -> requests.Response:
        raw = urllib3.HTTPResponse(
            body=io.BytesIO(answer.body)
            if answer.whole or request.method == "HEAD"
            else TooLarge(),
            headers=shown_fields(answer),  # type: ignore[arg-type]
            status=answer.status,
            version=11,
            reason=answer.reason or None,
            preload_content=False,
            decode_content=False,
            original_response=Original(answer),  # type: ignore[arg-type]
            request_method=request.method,
        )
        response = self._theirs.build_response(request, raw)
        response.connection = self  # type: ignore[assignment]
        response.unspool = ours  # type: ignore[attr-defined]
        return response

    def close(self) -> None:
        self._theirs.close()
        for one in self._origins.close():
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Original:
    """What requests reads cookies from: an answer as http.client has it."""

    def __init__(self, answer: Response) -> None:
        self.msg: Final = email.message.Message()
        for name, value in answer.headers.items():
            self.msg[name] = value

    def isclosed(self) -> bool:
        return True

    def close(self) -> None:
        """There is no connection to it."""


class TooLarge(io.RawIOBase):
    """A body that is not here."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        raise urllib3.exceptions.ProtocolError(TOO_LARGE)


def asked_of(request: requests.PreparedRequest, timeout: Any) -> Asked:
    """Without its body."""
    if isinstance(timeout, tuple):
        timeout = timeout[1]
    elif isinstance(timeout, urllib3.Timeout):
        timeout = timeout.read_timeout
    if not isinstance(timeout, int | float):
        timeout = None
    fields = [(_bytes(name), _bytes(value)) for name, value in request.headers.items()]
    return Asked(
        method=request.method or "GET",
        url=(request.url or "").partition("#")[0],
        fields=tuple(fields),
        deadline=timeout,
    )


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise wrong(f"the field {text!r} has characters outside Latin-1") from error


def body_of(request: requests.PreparedRequest, max_bytes: int) -> bytes:
    """Whole. A file is wound back; what can be read only once is replaced by what it held."""
    body: Any = request.body
    if body is None:
        return b""
    if isinstance(body, str | bytes | bytearray):
        return bounded([body], max_bytes)  # type: ignore[list-item]
    if hasattr(body, "read") and hasattr(body, "seek") and hasattr(body, "tell"):
        began = body.tell()
        found = bounded(_read(body), max_bytes)
        body.seek(began)
        return found
    found = bounded(_read(body) if hasattr(body, "read") else body, max_bytes)
    request.body = found
    return found


def _read(body: Any) -> Iterator[bytes | str]:
    while part := body.read(READ_BYTES):
        yield part
