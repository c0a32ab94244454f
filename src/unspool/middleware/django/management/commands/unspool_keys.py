"""manage.py unspool_keys: which keys are stuck, and which ended in doubt."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from ...desk import desk


class Command(BaseCommand):
    help = (
        "List the keys that need a look: runs that are under way or were cut short, and those of"
        " which nobody knows whether they had their effect. --all: every key, the oldest first."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "name", nargs="?", help="Only this Idempotency-Key, of whichever caller."
        )
        parser.add_argument("--all", action="store_true", help="Keys that ended well, too.")
        parser.add_argument("--limit", type=int, default=1_000, help="At most so many rows.")

    def handle(self, *, name: str | None, limit: int, **options: Any) -> None:
        rows = desk().keys(name=name, everything=options["all"] or name is not None, limit=limit)
        for row in rows:
            self.stdout.write("\t".join(row))
        if not rows:
            self.stderr.write("No key is stuck, and none is in doubt.")
        elif len(rows) == limit:
            self.stderr.write(f"There may be more: these are the first {limit}.")
