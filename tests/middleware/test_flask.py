"""The example with Flask: sessions, tokens, uploads, and Flask's own errors."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from examples.flask_shop import USERS, create_app
from flask import Flask, request
from flask.testing import FlaskClient

from unspool.middleware.wsgi import Idempotency


@pytest.fixture
def app() -> Iterator[Flask]:
    made = create_app("memory:", survives="nothing")
    yield made
    assert isinstance(made.wsgi_app, Idempotency)
    made.wsgi_app.close()


@pytest.fixture
def ann(app: Flask) -> FlaskClient:
    client = app.test_client()
    assert client.post("/login", data={"user": "ann"}).status_code == 204
    return client


KEY = {"Idempotency-Key": '"k1"'}


def test_a_session_is_a_scope(app: Flask, ann: FlaskClient) -> None:
    """Repeats get the same answer, another user runs their own, nobody runs nothing."""
    first = ann.post("/orders", data={"item": "tea"}, headers=KEY)
    again = ann.post("/orders", data={"item": "tea"}, headers=KEY)
    assert (first.status_code, first.headers["Location"]) == (201, "/orders/1")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (again.json, again.headers["Location"]) == (first.json, "/orders/1")
    assert len(first.get_json()["charge"]) == 32
    bob = app.test_client()
    token = {"Authorization": f"Bearer {USERS['bob']}"}
    assert bob.post("/orders", data={"item": "tea"}, headers=KEY | token).json != first.json
    assert app.test_client().post("/orders", data={"item": "x"}, headers=KEY).status_code == 403
    assert len(ann.get("/orders").get_json()) == 2


def test_one_user_is_one_caller_however_they_prove_it(app: Flask, ann: FlaskClient) -> None:
    """D2: a session, then a token: the same key is the same request."""
    ann.post("/orders", data={"item": "tea"}, headers=KEY)
    token = {"Authorization": f"Bearer {USERS['ann']}"}
    again = app.test_client().post("/orders", data={"item": "tea"}, headers=KEY | token)
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_forged_session_is_nobody(app: Flask) -> None:
    client = app.test_client()
    client.set_cookie("session", "eyJ1c2VyIjoiYW5uIn0.aaaaaa.forged")
    assert client.post("/orders", data={"item": "tea"}, headers=KEY).status_code == 403


def test_a_user_who_is_locked_out_gets_no_kept_answer(
    ann: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D5."""
    ann.post("/orders", data={"item": "tea"}, headers=KEY)
    monkeypatch.delitem(USERS, "ann")
    assert ann.post("/orders", data={"item": "tea"}, headers=KEY).status_code == 403


def test_without_a_key_it_is_flask_as_before(ann: FlaskClient) -> None:
    for _ in range(2):
        assert ann.post("/orders", data={"item": "tea"}).get_json()["charge"] == ""
    assert len(ann.get("/orders").get_json()) == 2


def test_uploads_and_errors(app: Flask) -> None:
    """A form with a file is read by the application as ever; a new boundary is the same request;
    a handler that raises runs again."""
    runs: list[bytes] = []

    @app.post("/upload")
    def upload() -> str:
        runs.append(request.files["file"].read())
        if len(runs) == 1:
            raise LookupError
        return f"{len(runs)}"

    ann = app.test_client()
    ann.post("/login", data={"user": "ann"})

    def send() -> tuple[int, str]:
        form = {"note": "n", "file": (io.BytesIO(b"\0\1\2" * 1000), "a.bin")}
        got = ann.post("/upload", data=form, headers=KEY)
        return got.status_code, got.text

    assert send()[0] == 500
    assert send() == send() == (200, "2")
    assert runs == [b"\0\1\2" * 1000] * 2
