"""A page of the docs as a session: its commands run, its outputs compared.

    run(page, folder=…, ports=…)    the fenced `sh` blocks of a page, in order, in one shell

A `text` block right behind an `sh` block is what that block prints (out and error together), where
`…` stands for anything, also for several lines. An `sh` block without one must only succeed. The
pages' well-known ports are replaced by free ones; `unspool` and `python` are this environment's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "=== block {} ended with"


class Block(NamedTuple):
    number: int
    commands: str
    expected: str | None


def blocks(page: Path) -> list[Block]:
    """The commands of a page with what they are said to print."""
    fences = list(FENCE.finditer(page.read_text("utf-8")))
    found: list[Block] = []
    for number, fence in enumerate(fences):
        if fence[1] != "sh":
            continue
        after = fences[number + 1] if number + 1 < len(fences) else None
        told = after is not None and after[1] == "text"
        found.append(Block(len(found), fence[2], after[2] if told and after else None))
    return found


def matches(expected: str, printed: str) -> bool:
    parts = re.split(r"(^…\n|\n…$|…)", expected.strip())
    pattern = "".join(".*" if "…" in part else re.escape(part) for part in parts)
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def replaced(text: str, others: Mapping[str, str]) -> str:
    """All at once: what one puts in may look like what another takes out (8001, and 18001)."""
    return re.sub("|".join(map(re.escape, others)), lambda found: others[found[0]], text)


HANGS_S = 240.0
MORE = """
seq() { command seq "$(($1 * 6))"; }
"""
"""A page says how often a reader looks whether a server is there; a machine that runs four tests at
a time needs longer."""


def _printed(script: list[str], folder: Path, environ: dict[str, str]) -> str:
    try:
        return subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANGS_S,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as late:
        so_far = (late.output or b"").decode("utf-8", "replace")
        raise AssertionError(f"it hangs; it had printed:\n{so_far}") from None


def run(
    session: list[Block], *, folder: Path, replace: Mapping[str, str], before: str = ""
) -> dict[int, tuple[int, str]]:
    """Exit code and output of each block that was reached."""
    script = [MORE, before]
    for block in session:
        script.append(replaced(block.commands, replace).rstrip())
        script.append(f'echo "{MARK.format(block.number)} $?"')
    script.append("kill $(jobs -p) 2>/dev/null; wait")
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
        # The pages rely on the default; two test runs at a time must not.
        "UNSPOOL_LISTEN": "127.0.0.1:" + replace["8700"],
    }
    printed = _printed(script, folder, environ)
    printed = replaced(printed, {new: old for old, new in replace.items()})
    results: dict[int, tuple[int, str]] = {}
    start = 0
    for ended in re.finditer(r"=== block (\d+) ended with (\d+)\n", printed, re.MULTILINE):
        results[int(ended[1])] = (int(ended[2]), printed[start : ended.start()])
        start = ended.end()
    return results
