"""docs/reference/handover.md: its examples are messages, and its table has every member."""

from __future__ import annotations

import re
from pathlib import Path

from unspool.core.handover import FIELDS_MAX, HEAD_MAX_BYTES, VERSION, _Form, unpack

PAGE = (Path(__file__).parents[2] / "docs/reference/handover.md").read_text("utf-8")


def test_the_examples_can_be_read() -> None:
    """What the page shows is accepted as it stands there."""
    examples = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        assert unpack(example.encode()).request.body


def test_the_table_has_every_member() -> None:
    """One row for each member, in the order in which they are written."""
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(_Form.__struct_fields__)
    assert f"at most {HEAD_MAX_BYTES // 1024} KiB and {FIELDS_MAX} fields" in PAGE
    assert f"| `unspool` | must | {VERSION} |" in PAGE
