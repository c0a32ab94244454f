"""manage.py unspool_sweep: forget what was kept long enough."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from ...desk import desk


class Command(BaseCommand):
    help = (
        "Forget keys, answers and records of atomic views that were kept long enough. The spool is"
        " swept by the middleware, too; the table unspool_once only by this: run it once a day."
    )

    def handle(self, **_: Any) -> None:
        keys, records = desk().sweep()
        self.stdout.write(f"{keys} keys and answers, {records} records of atomic views.")
