"""docs/howto/postgres.md: its commands do what it says."""

from __future__ import annotations

from pathlib import Path

from docs.page import ROOT, blocks, matches, run
from ports import free_ports
from servers.postgres import postgres


def test_the_page(tmp_path: Path) -> None:
    session = blocks(ROOT / "docs/howto/postgres.md")
    service, relay = map(str, free_ports(2))
    with postgres(durable=True) as server:
        replace = {"8700": relay, "8000": service, "5432": str(server.port)}
        results = run(session, folder=tmp_path, replace=replace)
    for block in session:
        code, printed = results[block.number]
        assert code == 0, f"{block.commands}\n-> {code}\n{printed}"
        if block.expected is not None:
            assert matches(block.expected, printed), f"{printed}\nand not\n{block.expected}"
