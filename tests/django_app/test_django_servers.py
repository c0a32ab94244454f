"""Django behind real servers: several processes, both protocols, kill -9."""

from __future__ import annotations

import http.client
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers_kit import Got, at_once, post, serving

HERE = Path(__file__).parent
GUNICORN = ["-m", "gunicorn", "--bind", "fd://{fd}", "--log-level", "warning"]
WSGI = [*GUNICORN, "--workers", "2", "django_shop.wsgi"]
PRELOADED = [
    *GUNICORN, "--workers", "2", "--worker-class", "gthread", "--threads", "2", "--preload",
    "django_shop.wsgi",
]  # fmt: skip
ASGI = ["-m", "uvicorn", "--fd", "{fd}", "--log-level", "warning", "django_shop.asgi:application"]


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables, made once by manage.py migrate; then manage.py check has nothing to say."""
    folder = tmp_path_factory.mktemp("shop")
    for words in (
        ["migrate", "--run-syncdb", "-v0"],
        ["check", "--database", "default", "--fail-level", "WARNING"],
    ):
        subprocess.run(
            [sys.executable, "-m", "django", *words], env={**os.environ, **of(folder)}, check=True
        )
    return folder / "shop.db"


@pytest.fixture
def environ(migrated: Path, tmp_path: Path) -> dict[str, str]:
    """A project of its own, with its tables."""
    shutil.copy(migrated, tmp_path)
    return of(tmp_path)


def of(folder: Path) -> dict[str, str]:
    return {
        "SHOP_FOLDER": str(folder), "DJANGO_SETTINGS_MODULE": "django_shop.settings",
        "SHOP_SCOPE": "django_shop.views.by_field", "PYTHONPATH": str(HERE),
    }  # fmt: skip


def orders(folder: Path) -> list[str]:
    database = sqlite3.connect(folder / "shop.db", timeout=60)
    try:
        return [item for (item,) in database.execute("SELECT item FROM django_shop_order")]
    finally:
        database.close()


def test_one_effect_for_each_key_over_processes_and_protocols(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """E2: gunicorn's processes, its threads after a preload, and uvicorn, on one spool."""
    keys = [f"order-{number}" for number in range(6)]
    with serving([WSGI, PRELOADED, ASGI], folder=tmp_path, environ=environ) as ports:
        found = at_once(ports, keys, each=9, path="/slowly")
        later = at_once(ports[2:], ["later"], each=6, path="/later")
    for name, answers in {**found, **later}.items():
        assert {got.status for got in answers} == {201}, answers
        assert len({got.body for got in answers}) == 1
        assert sum("idempotent-replayed" not in got.fields for got in answers) == 1, name
    assert len(orders(tmp_path)) == 7
    logs = "".join(log.read_text() for log in tmp_path.glob("server-*.log"))
    assert "Traceback" not in logs, logs


@pytest.mark.parametrize("place", ["before", "after"])
def test_killed_around_the_commit_of_an_atomic_view(
    environ: dict[str, str], tmp_path: Path, place: str
) -> None:
    """F1, F6: kill -9 before the commit leaves nothing, after it everything; the repeat waits for
    the lease, no longer, and is given the answer: one order, whatever happened."""
    fields = {"Idempotency-Key": "k1", "X-User": "ann", "X-Crash": place}
    environ = {**environ, "SHOP_LEASE_MS": "600"}
    with serving([WSGI], folder=tmp_path, environ=environ) as ports:
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            post(ports[0], "/atomic/answer 201".replace(" ", "%20"), b"", fields=fields)
        assert len(orders(tmp_path)) == (0 if place == "before" else 1)
        until = time.monotonic() + 60
        while (got := again(ports[0], fields)).status == 409 and time.monotonic() < until:
            time.sleep(0.1)
        assert (got.status, got.body) == (201, b"answer 201")
        assert again(ports[0], fields).fields["idempotent-replayed"] == "true"
    assert len(orders(tmp_path)) == 1


def again(port: int, fields: dict[str, str]) -> Got:
    return post(port, "/atomic/answer%20201", b"", fields=fields)
