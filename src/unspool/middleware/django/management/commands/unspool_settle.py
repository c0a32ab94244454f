"""manage.py unspool_settle: end one key by hand."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...desk import desk


class Command(BaseCommand):
    help = (
        "End one key whose run was cut short, once you have found out what came of it. KEY is the"
        " first column of unspool_keys. A run that is under way is left alone."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("key")
        ways = parser.add_mutually_exclusive_group(required=True)
        ways.add_argument(
            "--release", action="store_true", help="It had no effect: a repeat runs it again."
        )
        ways.add_argument(
            "--unknown", action="store_true", help="Nobody knows: a repeat is told so, with 409."
        )
        ways.add_argument(
            "--status", type=int, help="It had its effect: a repeat gets this status, and no body."
        )

    def handle(self, *, key: str, release: bool, status: int | None, **_: Any) -> None:
        if status is not None and not 200 <= status <= 499:
            raise CommandError("--status is that of an answer that stands: 200 to 499.")
        told = desk().settle(key, status=status, release=release)
        if not told.done:
            raise CommandError(told.text)
        self.stdout.write(told.text)
