"""From settings to a node's plan: the one place that knows both."""

from __future__ import annotations

from ..core.lane import Conduct
from ..core.lifecycle import Keeping, Policy
from ..core.message import Destination
from ..core.schedule import Pace
from ..node import Plan
from ..passage import Options
from ..settings import Settings
from ..spools.open import of_one_machine
from ..spools.protocol import Survives


def plan_of(settings: Settings) -> Plan:
    """What these settings mean for a node."""
    # Relays on other hosts may share what is not on this one: then claims are written down.
    alone = settings.workers == 1 and all(map(of_one_machine, settings.spool))
    policy = Policy(
        pace=Pace(least_ms=settings.backoff_least_ms, most_ms=settings.backoff_most_ms),
        keeping=Keeping(
            answer_ms=settings.answer_keep_ms,
            key_ms=settings.key_keep_ms,
            answer_max_bytes=settings.answer_max_bytes,
        ),
    )
    options = Options(
        destination=Destination((settings.destination or settings.to)[0]),
        via=settings.via_name,
        policy=policy,
        scope_fields=tuple(name.lower().encode() for name in settings.scope_fields),
        key_max_chars=settings.key_max_chars,
        lifetime_ms=settings.lifetime_ms,
        wait_max_ms=settings.wait_max_ms,
        lease_ms=settings.lease_ms,
        total_ms=settings.total_ms,
        repeat_always=settings.repeat == "always",
        forwarded=settings.forwarded == "add",
        claims=not alone,
    )
    return Plan(
        options=options,
        formerly=tuple(Destination(name) for name in settings.destination[1:]),
        required=Survives[settings.survives.upper()],
        backlog_max=settings.backlog_max,
        disk_free_min_bytes=settings.disk_free_min_bytes,
        attempts_max=settings.attempts_max,
        conduct=Conduct(
            window_start=settings.window_start,
            window_max=settings.window_max,
            cohort_max=settings.cohort_max,
        ),
        alone=alone,
    )
