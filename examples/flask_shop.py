"""Flask with keys: who is asking comes from the signed session, or from a bearer token.

    flask --app examples.flask_shop run

    curl -c jar http://127.0.0.1:5000/login -d user=ann
    curl -b jar http://127.0.0.1:5000/orders -H 'Idempotency-Key: "k1"' -d item=tea       201
    curl -b jar http://127.0.0.1:5000/orders -H 'Idempotency-Key: "k1"' -d item=tea       the same

`g` and `current_user` are not there yet when the middleware asks who is asking: it stands before
the application. So the scope function reads what they are made from, with Flask's own means, and
looks whether that user may still come: a caller who is locked out is nobody, and gets 403 and not
a kept answer.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, abort, jsonify, request, session
from flask.typing import ResponseReturnValue

from unspool.middleware.wsgi import Idempotency

USERS = {"ann": "token-of-ann", "bob": "token-of-bob"}


def create_app(spool: str = "sqlite:///shop.db", **options: Any) -> Flask:
    made = Flask("shop")
    made.secret_key = "change me"
    orders: list[dict[str, str]] = []

    def user_of(environ: dict[str, Any]) -> str | None:
        """The user's name, or None: of the token, or of the session's cookie."""
        asked = made.request_class(environ)
        if asked.authorization is not None and asked.authorization.type == "bearer":
            named = [user for user, token in USERS.items() if token == asked.authorization.token]
            return named[0] if named else None
        opened = made.session_interface.open_session(made, asked) or {}
        user = opened.get("user")
        return user if user in USERS else None

    @made.post("/login")
    def login() -> ResponseReturnValue:
        if request.form.get("user") not in USERS:
            abort(401)
        session["user"] = request.form["user"]
        return "", 204

    @made.post("/orders")
    def order() -> ResponseReturnValue:
        user = user_of(request.environ)
        if user is None:
            abort(401)
        running = request.environ.get("unspool")  # None: it came without a key
        charge = running.child_key("charge") if running else ""
        orders.append({"item": request.form["item"], "user": user, "charge": charge})
        return jsonify(orders[-1]), 201, {"Location": f"/orders/{len(orders)}"}

    @made.get("/orders")
    def all_orders() -> ResponseReturnValue:
        return jsonify(orders)

    made.wsgi_app = Idempotency(  # type: ignore[method-assign]
        made.wsgi_app, spool=spool, scope=user_of, **options
    )
    return made


app = create_app()
