"""Ask every target every row, and write down what came: docs/reference/idempotency.json.

    python tests/idempotency/record.py        takes a minute; then docs/generate.py makes the page

The page says what the tests saw, and the tests say when it does not.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from places import BY_DESIGN, ELSEWHERE, HERE, NOT_DONE
from targets import TARGETS

from unspool.testing.idempotency import ROWS, Came, Result, check

FILE: Final = Path(__file__).parents[2] / "docs" / "reference" / "idempotency.json"


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return found


def cells(target: str, results: Mapping[str, Result]) -> dict[str, str]:
    """For each row: yes, no, by design, or elsewhere: shown by tests that are not on the wire."""

    def cell(row: str) -> str:
        if row in BY_DESIGN[target]:
            return "by design"
        if target in ELSEWHERE.get(row, {}):
            return "elsewhere"
        return "yes" if results[row].came is Came.PASSED else "no"

    return {row: cell(row) for row in ROWS}


def main() -> None:
    targets = {}
    for name in HERE:
        with tempfile.TemporaryDirectory() as folder, TARGETS[name](Path(folder)) as target:
            results = asyncio.run(check(target.service, by_design=BY_DESIGN[name]))
        targets[name] = cells(name, {result.row: result for result in results})
    found = {
        "targets": targets,
        "by_design": BY_DESIGN,
        "elsewhere": ELSEWHERE,
        "not_done": NOT_DONE,
    }
    FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"wrote {FILE.name}; now run docs/generate.py")


if __name__ == "__main__":
    main()
