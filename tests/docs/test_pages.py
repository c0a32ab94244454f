"""Every example in the docs runs, and prints what the page says it prints."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ports import free_ports
from servers import gearmand, redis
from unspool.config import load

from .page import FENCE, ROOT, Block, blocks, matches, replaced, run

UNTIL = (
    "for i in $(seq 100); do curl -s -o /dev/null http://127.0.0.1:8700/_unspool/health && break;"
    " sleep 0.1; done"
)
"""Until it listens."""
RELAY = (
    "unspool serve --to http://127.0.0.1:8000 --spool sqlite:///unspool.db 2>/dev/null &\n"
    f"{UNTIL}\n"
    "curl -s -o /dev/null http://127.0.0.1:8700/orders -H 'Idempotency-Key: \"order-7\"'"
    ' -d \'{"item": "tea"}\'\n'
)
"""What the how-tos take for granted: a relay, a service that is down, and one message."""

WAITS = f"""
export UNSPOOL_BACKOFF_LEAST_MS=30m
{RELAY}"""
"""It waits for long: what is tried just now can be neither moved nor dropped, and a relay would try
it each second or two."""

STOPPED = WAITS + "kill $!; wait $! 2>/dev/null\n"
"""Nobody tries it, also not when it is made due."""

LONG = "export UNSPOOL_BACKOFF_LEAST_MS=30m\n"
"""The same for pages that start their relay themselves."""

TUTORIAL = """
until_there() {
    while ! curl -s -o /dev/null "$1"; do command sleep 0.1; done
}
sleep() {
    case $1 in
    2) until_there http://127.0.0.1:8700/_unspool/health
        case $(jobs -r) in *examples.orders*) until_there http://127.0.0.1:8000/ ;; esac
        command sleep 2 ;;
    1) while kill -0 %1 2>/dev/null; do command sleep 0.1; done ;;
    0.5) while kill -0 %2 2>/dev/null; do command sleep 0.1; done ;;
    esac
}
"""
"""What its reader waits for by the clock: until both are there and have said so, until the service
has gone, until the relay has."""

MEANT = {
    "docs/howto/adapters.md": {
        "drain(timeout=3)": "drain(timeout=3 if sys.argv[1] == 'order-7' else 60)",
    },
    "docs/howto/client.md": {"deadline=2": "deadline=20"},
    "docs/tutorial/break-a-service.md": {"wait=20": "wait=60"},
}
"""How long a reader waits; a machine that runs four tests at a time may need longer."""

GEARMAND = """
PATH=$PATH:/usr/sbin
gearmand -L 127.0.0.1 -p 4730 -l none -P '' -u "$(id -un)" &
until gearadmin -p 4730 --status >/dev/null 2>&1; do sleep 0.1; done
"""
"""As Debian starts it."""

REDIS = """
PATH=$PATH:/usr/bin
printf 'port 6379\\nbind 127.0.0.1\\nsave ""\\n' > redis.conf
redis-server redis.conf >/dev/null &
until redis-cli -p 6379 PING >/dev/null 2>&1; do sleep 0.1; done
"""
"""As Debian starts it."""

REDIS_LATER = "PATH=$PATH:/usr/bin\n"
"""The page starts it itself."""

SESSIONS = {
    "docs/howto/adapters.md": "",
    "docs/howto/check-your-server.md": "",
    "docs/tutorial/break-a-service.md": TUTORIAL,
    "docs/howto/choose-a-spool.md": LONG,
    "docs/howto/co-commit.md": "",
    "docs/howto/asgi.md": "",
    "docs/howto/django.md": "",
    "docs/howto/gearman.md": GEARMAND,
    "docs/howto/client.md": "",
    "docs/howto/keys.md": RELAY,
    "docs/howto/move-house.md": WAITS,
    "docs/howto/nats.md": LONG,
    "docs/howto/once.md": "",
    "docs/howto/queue.md": STOPPED,
    "docs/howto/redis.md": REDIS,
    "docs/howto/second-custodian.md": REDIS_LATER,
    "docs/howto/wsgi.md": "",
}
SHOWN = {"README.md", "docs/howto/run-it.md"}
"""Pages whose commands name other people's folders: run one by one below."""

ELSEWHERE = {
    "docs/howto/postgres.md": "tests/conformance/test_postgres_page.py",
    "docs/howto/rabbitmq.md": "tests/queues/test_rabbitmq.py",
    "docs/howto/s3.md": "tests/queues/test_s3.py",
}
"""Pages that need a server which starts slowly: run where it runs anyway."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SESSIONS)
def test_the_commands_of_the_page_do_what_it_says(name: str, tmp_path: Path) -> None:
    session = blocks(ROOT / name)
    if SESSIONS[name] is GEARMAND:
        gearmand.program("gearmand")
    if SESSIONS[name] in (REDIS, REDIS_LATER):
        redis.need()
    service, weather, relay, queue, server, broker = map(str, free_ports(6))
    replace = {"8000": service, "8001": weather, "8700": relay, "4730": queue, "6379": server}
    replace["4222"] = broker
    replace |= MEANT.get(name, {})
    before = replaced(SESSIONS[name], replace)
    results = run(session, folder=tmp_path, replace=replace, before=before)
    assert len(results) == len(session), f"stopped after block {len(results)}: {results}"
    for block in session:
        code, printed = results[block.number]
        assert code == 0, f"{block.commands}\n-> {code}\n{printed}"
        if block.expected is not None:
            assert matches(block.expected, printed), (
                f"{block.commands}\nprints\n{printed}\nand the page says\n{block.expected}"
            )


def test_every_page_with_commands_is_run_somewhere() -> None:
    pages = {
        str(page.relative_to(ROOT))
        for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        if blocks(page)
    }
    generated = {
        f"docs/reference/{name}.md"
        for name in ("settings", "commands", "problems", "idempotency", "client")
    }
    assert pages - generated == set(SESSIONS) | SHOWN | set(ELSEWHERE)
    for name, where in ELSEWHERE.items():
        assert name.rpartition("/")[2] in (ROOT / where).read_text("utf-8")


def test_the_four_things_of_the_readme_work(tmp_path: Path) -> None:
    session = blocks(ROOT / "README.md")
    serve, send, ask, see = session
    service, relay = free_ports(2)
    serve = Block(0, serve.commands.rstrip().replace("./run", "unspool") + f" &\n{UNTIL}\n", None)
    send = Block(1, send.commands.rstrip() + " | tee answer; echo\n", None)
    token = "$(sed -n 's#^Location: /_unspool/receipts/\\([^ ]*\\).*#\\1#p' answer | tr -d '\\r')"
    ask = Block(2, ask.commands.replace("…?wait=30", token + "?wait=1"), None)
    see = Block(3, see.commands.replace("./run", "unspool"), None)
    results = run(
        [serve, send, ask, see],
        folder=tmp_path,
        replace={"8700": str(relay), "127.0.0.1:8000": f"127.0.0.1:{service}"},
    )
    assert "202 Accepted" in results[1][1]
    assert '"state":"waiting"' in results[2][1]
    assert "order-42" in results[3][1]


def test_the_configuration_examples_are_read() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name == "settings.md":
            continue
        for fence in FENCE.finditer(page.read_text("utf-8")):
            if fence[1] == "toml":
                load(tomllib.loads(fence[2]), {})


def test_the_python_examples_run() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for fence in FENCE.finditer(page.read_text("utf-8")):
            if fence[1] == "python":
                exec(compile(fence[2], str(page), "exec"), {"__name__": "example"})


def test_the_tables_of_the_page_are_those_that_are_made() -> None:
    """What somebody copies into a migration is what `once.create` makes."""
    from unspool.middleware.once import once

    text = (ROOT / "docs/howto/co-commit.md").read_text("utf-8")
    shown = [fence[2] for fence in FENCE.finditer(text) if fence[1] == "sql"]
    made = ["".join(f"{one};\n" for one in once.DDL[name]) for name in ("postgresql", "sqlite")]
    assert shown == made


def test_run_it_for_real_names_settings_that_exist() -> None:
    text = (ROOT / "docs/howto/run-it.md").read_text("utf-8")
    flags = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text)) - {"defaults", "json", "config"}
    load({flag.replace("-", "_"): None for flag in flags}, {})
    from unspool.settings import SETTINGS

    assert {flag.replace("-", "_") for flag in flags} <= set(SETTINGS)
