"""What people may see of a URL."""

from __future__ import annotations

import pytest

from unspool.core.urls import concealed


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("sqlite:///unspool.db", "sqlite:///unspool.db"),
        ("sqlite:////srv/a@b/unspool.db", "sqlite:////srv/a@b/unspool.db"),
        ("memory:", "memory:"),
        ("postgres://db/mail", "postgres://db/mail"),
        ("postgres://me:hunter2@db:5432/mail?x=1", "postgres://me:...@db:5432/mail?x=1"),
        ("postgres://me@db/mail", "postgres://me@db/mail"),
        ("postgres://hunter2@hunter2@db/mail", "postgres://...@db/mail"),
        ("redis://:hunter2@[::1]:6379/0", "redis://:...@[::1]:6379/0"),
        ("nats://hunter2@a:4222", "nats://...@a:4222"),
        ("postgres://me:hunter2/@hunter2@db/mail", "postgres://me:...@db/mail"),
        ("postgres://me:hunter2?#@db/mail", "postgres://me:...@db/mail"),
        ("postgres://db/mail?user=me&password=hunter2", "postgres://db/mail?user=me&password=..."),
        ("s3://b?secret_access_key=hunter2&region=x", "s3://b?secret_access_key=...&region=x"),
        ("x://h?session_TOKEN=hunter2", "x://h?session_TOKEN=..."),
    ],
)
def test_a_password_is_not_shown_and_all_else_is(url: str, seen: str) -> None:
    assert concealed(url) == seen


def test_of_several_urls_in_a_text_each_is_concealed() -> None:
    text = "to = http://a:hunter2@b, postgres://c:hunter2@d/e"
    assert concealed(text) == "to = http://a:...@b, postgres://c:...@d/e"
