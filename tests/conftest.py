"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Hypothesis gives an example 0.2 s: a machine that is held up for so long would have failed it."""
settings.load_profile("patient")


def pytest_configure() -> None:
    """A shell that runs us in the background has SIGINT ignored, and so would all that we start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
