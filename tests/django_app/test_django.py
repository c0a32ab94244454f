"""The Django middleware and decorator, with the test client: every kind of view and answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client, RequestFactory, TestCase, override_settings
from django_shop import views
from django_shop.models import Order
from shop_kit import Shop, keyed

from unspool.core.message import NEVER, Instant
from unspool.middleware.django import idempotent
from unspool.middleware.django.keeper import Keeper

REPLAYED = "Idempotent-Replayed"


def test_a_repeat_gets_the_same_answer_and_nothing_runs(shop: Shop) -> None:
    """Status, fields, body; the cookie went to the first caller only."""
    first, again = shop.post("/create", '"k1"'), shop.post("/create", "k1")
    assert shop.orders == 1
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert first["Location"] == again["Location"] == "/orders/1"
    assert first["Content-Type"] == again["Content-Type"]
    assert first["Idempotency-Retention"] == "answer=86400, key=2592000"
    assert again[REPLAYED] == "true"
    assert REPLAYED not in first
    assert first.cookies["last"].value == "1"
    assert "last" not in again.cookies


def test_what_is_said_of_a_key_stands_once(shop: Shop) -> None:
    """Of a view that passes on what another of ours has said, the middleware says its own."""
    first, again = shop.post("/plain/marked"), shop.post("/plain/marked")
    for answer in (first, again):
        assert answer["Idempotency-Retention"] == "answer=86400, key=2592000"
        assert answer[REPLAYED] == "true"


@pytest.mark.parametrize("path", ["/plain/cookie", "/atomic/cookie"])
def test_a_cookie_that_no_server_can_write_frees_no_key(shop: Shop, path: str) -> None:
    """A character above U+00FF fits into no field: what becomes of that answer is Django's affair
    and its server's. The view has run, so the key is taken, and a repeat gets the answer."""
    assert shop.post(path).cookies["name"].value == "\u017dofie"
    del shop.client.cookies["name"]  # it would send what no browser was given
    again = shop.post(path)
    assert (again.status_code, again.content, again[REPLAYED]) == (201, b"made", "true")
    assert shop.orders == 1


def test_without_a_key_nothing_is_different(shop: Shop) -> None:
    for _ in range(2):
        assert "Idempotency-Retention" not in shop.post("/create", None)
    assert shop.orders == 2
    assert shop.client.get("/ready", **keyed("k1")).content == b"yes"


def test_another_request_under_the_key_is_refused(shop: Shop) -> None:
    """Another body, another path, another query: 422; a new boundary is the same request."""
    shop.post("/create")
    assert shop.post("/create", item="coffee").status_code == 422
    assert shop.post("/plain/x").status_code == 422
    assert shop.post("/create?q=1").status_code == 422
    assert shop.post("/create").status_code == 201
    assert shop.orders == 1
    problem = json.loads(shop.post("/create", item="x").content)
    assert problem["type"] == "/_unspool/problems/key-reused"


@pytest.mark.parametrize("key", ["", '"k', "a,b", "k" * 256])
def test_a_key_that_cannot_be_read_is_refused(shop: Shop, key: str) -> None:
    assert shop.post("/create", key).status_code == 400
    assert shop.orders == 0


def test_users_have_keys_of_their_own_and_nobody_has_none(shop: Shop) -> None:
    """D1, D2, D5: another user runs their own; a new session is the same user; a user who is gone
    gets no kept answer."""
    shop.post("/create")
    bob = shop.caller("bob")
    assert REPLAYED not in bob.post("/create", {"item": "tea"}, **keyed("k1"))
    assert shop.caller("ann").post("/create", {"item": "tea"}, **keyed("k1"))[REPLAYED] == "true"
    assert Client().post("/create", {"item": "tea"}, **keyed("k1")).status_code == 403
    User.objects.filter(username="ann").update(is_active=False)
    assert shop.post("/create").status_code == 403
    assert shop.orders == 2


@pytest.mark.parametrize(
    ("path", "status", "runs"),
    [
        ("/plain/raises", 500, 2), ("/plain/404", 404, 1), ("/plain/403", 403, 2),
        ("/plain/answer 409", 409, 1), ("/plain/answer 503", 503, 2), ("/plain/forget", 200, 2),
        ("/atomic/answer 409", 409, 1), ("/nowhere", 404, 0),
    ],
)  # fmt: skip
def test_what_lasts_is_kept_and_what_passes_is_not(
    shop: Shop, path: str, status: int, runs: int
) -> None:
    """G1, G2, G5: exceptions are 500s by then, and those are not remembered."""
    for _ in range(2):
        assert shop.post(path).status_code == status
    assert shop.orders == runs


def test_an_effect_and_then_an_exception_is_unknown(shop: Shop) -> None:
    """F8."""
    assert shop.post("/plain/effect").status_code == 500
    assert shop.post("/plain/effect").status_code == 409
    assert shop.orders == 1


@pytest.mark.parametrize("kind", ["raises", "404", "403", "answer 500", "forget"])
def test_what_an_atomic_view_does_and_is_not_remembered_is_undone(shop: Shop, kind: str) -> None:
    """The rows roll back with an exception, with a 5xx, and with what said `forget`; with a key
    and without."""
    shop.post(f"/atomic/{kind}")
    assert shop.orders == 0
    shop.post(f"/atomic/{kind}")
    assert shop.orders == 0
    shop.post(f"/atomic/{kind}", None)
    assert shop.orders == (1 if kind == "forget" else 0)


def records() -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, attempt FROM unspool_once")
        return list(cursor.fetchall())


def test_rows_and_record_are_one(shop: Shop) -> None:
    """The record is in the application's own database; a repeat that the spool has forgotten (a
    crash before its record) is given the same answer, and nothing is done twice (F6)."""
    first = shop.post("/atomic/answer 201")
    assert records() == [("k1", 1)]
    forget_in_spool()
    again = shop.post("/atomic/answer 201")
    assert (
        (again.status_code, again.content)
        == (first.status_code, first.content)
        == (201, b"answer 201")
    )
    assert shop.orders == 1
    assert shop.post("/atomic/answer 201")[REPLAYED] == "true"
    forget_in_spool()
    assert shop.post("/atomic/answer 201", item="coffee").status_code == 422
    assert shop.orders == 1


def forget_in_spool() -> None:
    """As if the process had died between its commit and the spool's record."""
    config: Any = apps.get_app_config("unspool")
    keeper: Keeper = config.keeper()

    async def sweep() -> int:
        ledger, _ = await keeper.opening.ledger()
        return await ledger.custody.spool.sweep(now=Instant(NEVER - 1), limit=100)

    assert keeper.portal.call(sweep) > 0


def test_a_stale_owner_rolls_back(shop: Shop) -> None:
    """F4: somebody with a higher attempt was there first; its rows stand, the late one's do not."""
    seen: list[int] = []

    def overtaken(request: Any) -> Any:
        views.placed(request)
        if not seen:
            seen.append(1)
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO unspool_once (scope, key, name, fingerprint, attempt, value, at,"
                    " keep_until) VALUES ('', %s, 'k1', X'', 2, X'76c0', 0, 9999999999999)",
                    [request.unspool.key],
                )
        return views.HttpResponse("late")

    with replaced_view(overtaken):
        answer = shop.post("/put-in")
    assert answer.status_code == 409
    assert answer["Retry-After"] == "1"
    assert shop.orders == 0


class replaced_view:
    def __init__(self, view: Any) -> None:
        from types import ModuleType

        from django.urls import path
        from django.views.decorators.csrf import csrf_exempt

        module = ModuleType("replaced_urls")
        module.urlpatterns = [path("put-in", csrf_exempt(idempotent(atomic=True)(view)))]  # type: ignore[attr-defined]
        self._settings = override_settings(ROOT_URLCONF=module)

    def __enter__(self) -> None:
        self._settings.enable()

    def __exit__(self, *_: object) -> None:
        self._settings.disable()


def test_what_a_template_reads_it_reads_in_the_transaction(shop: Shop) -> None:
    """A TemplateResponse is rendered before the commit, and its text is in the record."""
    assert shop.post("/template").content == b"1 x"
    forget_in_spool()
    assert shop.post("/template").content == b"1 x"
    assert shop.orders == 1


def test_a_streaming_answer_is_kept_as_a_fact(shop: Shop) -> None:
    """G6: by the spool, and by the record of an atomic view."""
    assert b"".join(shop.post("/stream").streaming_content) == b"a" * 10 + b"b" * 10
    assert shop.post("/stream")["Unspool-Body-Kept"] == "?0"
    forget_in_spool()
    assert shop.post("/stream")["Unspool-Body-Kept"] == "?0"
    assert shop.orders == 1


def test_files_are_read_as_ever(shop: Shop) -> None:
    """Multipart with a file, larger than what Django holds in memory for others."""
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=1_000):
        for _ in range(2):
            file = SimpleUploadedFile("a.bin", b"\0" * 5_000)
            answer = shop.post("/upload", note="n", file=file)
            assert answer.content == b"n a.bin 5000"
    assert shop.orders == 1


def test_a_body_over_the_limit_is_refused(shop: Shop) -> None:
    """413, by UNSPOOL or by the view's own option."""
    assert shop.post("/create", item="x" * 1_100_000).status_code == 413
    for size, status in ((11, 413), (10, 201)):
        answer = shop.client.put("/put", b"x" * size, content_type="text/plain", **keyed("k2"))
        assert answer.status_code == status
    assert shop.orders == 1


def test_sessions_are_above_and_run_for_each(shop: Shop) -> None:
    """What a view writes into a session is written once; a replay leaves it as it is."""
    assert shop.post("/sessions").content == b"1"
    assert shop.post("/sessions").content == b"1"
    assert shop.client.session["count"] == 1
    assert shop.post("/sessions", "k2").content == b"2"


def test_csrf_holds_under_a_key(shop: Shop) -> None:
    """A request without the token does not reach its view, and its 403 is not remembered."""
    client = shop.caller("ann", enforce_csrf_checks=True)
    assert client.post("/guarded", {"item": "tea"}, **keyed("k1")).status_code == 403
    assert shop.orders == 0
    client.cookies["csrftoken"] = "a" * 32
    for _ in range(2):
        answer = client.post("/guarded", {"item": "tea"}, HTTP_X_CSRFTOKEN="a" * 32, **keyed("k1"))
        assert answer.status_code == 201
    assert shop.orders == 1


# --- routes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/required", "/deep/method", "/dispatch", "/viewset", "/hidden"])
def test_a_view_may_require_a_key(shop: Shop, path: str) -> None:
    """Functions, methods, classes, actions of viewsets, and behind a careless decorator."""
    assert shop.post(path, None).status_code == 400
    assert shop.orders == 0
    first, again = shop.post(path), shop.post(path)
    assert (first.content, first.status_code) == (again.content, again.status_code)
    assert again[REPLAYED] == "true"
    assert shop.orders == 1


def test_another_method_of_a_class_is_not_marked(shop: Shop) -> None:
    assert shop.client.patch("/deep/method").status_code == 201


@pytest.mark.parametrize("path", ["/deep/method", "/dispatch", "/viewset"])
def test_methods_and_actions_are_atomic(shop: Shop, path: str) -> None:
    first = shop.post(path)
    assert records() == [("k1", 1)]
    forget_in_spool()
    assert shop.post(path).content == first.content
    assert shop.orders == 1


def test_nested_marks_are_found(shop: Shop) -> None:
    """At import where it can be seen, else when it happens; nothing is run."""
    assert shop.post("/nested").status_code == 500
    assert shop.orders == 0
    with pytest.raises(ImproperlyConfigured, match="twice"):
        idempotent(idempotent(views.placed))


def test_marks_that_make_no_sense_are_refused() -> None:
    async def view(request: Any) -> None: ...

    with pytest.raises(ImproperlyConfigured, match="asynchronous"):
        idempotent(atomic=True)(view)
    with pytest.raises(ImproperlyConfigured, match="Did you mean required"):
        idempotent(requierd=True)
    with pytest.raises(ImproperlyConfigured, match="method_decorator"):
        idempotent(views.ByMethod)


def test_a_request_that_did_not_pass_the_middleware_is_not_run(shop: Shop) -> None:
    """A view on its own (RequestFactory) works without a key, and fails closed with one."""
    factory = RequestFactory()
    with pytest.raises(ImproperlyConfigured, match="did not pass the middleware"):
        views.put(factory.put("/put", b"", **keyed("k1")))
    assert views.put(factory.put("/put", b"")).status_code == 201


def test_atomic_needs_to_be_the_outermost(shop: Shop) -> None:
    """Durable: within another transaction it is refused, for that one could still be undone."""
    from django.db import transaction

    with transaction.atomic():
        assert shop.post("/atomic/x").status_code == 500
    assert shop.orders == 0


def test_atomic_requests_leaves_atomic_views_alone(shop: Shop) -> None:
    """The mark exempts them: Django asks the view."""
    assert "default" in views.atomic._non_atomic_requests
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        assert shop.post("/atomic/x").status_code == 200
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    assert shop.orders == 1


def test_the_memory_is_down(shop: Shop, tmp_path: Any) -> None:
    """J7: 503 under a key; without one the site works."""
    from django.conf import settings

    down = settings.UNSPOOL | {"spool": f"sqlite:///{tmp_path}/none/idem.db"}
    with override_settings(UNSPOOL=down):
        answer = shop.post("/create")
        assert (answer.status_code, answer["Retry-After"]) == (503, "1")
        assert shop.orders == 0
        assert shop.post("/create", None).status_code == 201


@pytest.mark.parametrize("kind", ["none", "raises", "object"])
def test_scopes_that_are_none(shop: Shop, kind: str) -> None:
    """D4."""
    from django.conf import settings

    def scope(request: Any) -> Any:
        if kind == "raises":
            raise LookupError
        return None if kind == "none" else object()

    with override_settings(UNSPOOL=settings.UNSPOOL | {"scope": scope, "name": "other"}):
        assert shop.post("/create").status_code == (403 if kind == "none" else 500)
    assert shop.orders == 0


@pytest.mark.usefixtures("shop")
class InATestCase(TestCase):
    """Django's own TestCase, whose transaction Django knows not to count."""

    def test_atomic_views_work(self) -> None:
        client = Client()
        client.force_login(User.objects.create(username="cat"))
        for _ in range(2):
            answer = client.post("/atomic/x", {"item": "tea"}, HTTP_IDEMPOTENCY_KEY="k1")
            assert answer.status_code == 200
        assert Order.objects.count() == 1


def test_a_corrected_form_may_come_under_the_same_key(shop: Shop) -> None:
    """G3, where a project says so: a 400 is not remembered, and an atomic view is undone."""
    from django.conf import settings

    def mistake(response: Any) -> bool:
        return response.status == 400

    with override_settings(UNSPOOL=settings.UNSPOOL | {"unstored": mistake}):
        assert shop.post("/atomic/answer 400", item="").status_code == 400
        assert shop.orders == 0
        assert shop.post("/atomic/answer 400", item="tea").status_code == 400
