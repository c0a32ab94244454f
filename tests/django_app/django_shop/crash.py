"""kill -9, once, where the caller says: X-Crash: before | after the commit of an atomic view."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.utils.decorators import sync_and_async_middleware


def now(request: Any, place: str) -> None:
    flag = Path(os.environ["SHOP_FOLDER"], f"crashed-{place}")
    if request.META.get("HTTP_X_CRASH") == place and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@sync_and_async_middleware
def crash_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Below ours: what it does after the view comes before the spool's record."""
    if iscoroutinefunction(get_response):

        async def awaited(request: Any) -> Any:
            http = await get_response(request)
            now(request, "after")
            return http

        return awaited

    def called(request: Any) -> Any:
        http = get_response(request)
        now(request, "after")
        return http

    return called
