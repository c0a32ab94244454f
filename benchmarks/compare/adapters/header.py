"""asgi-idempotency-header: its middleware as in its README, with its memory backend.

It has no hook for who is asking, and its other backend is Redis: with Redis the lock is shared, and
what is kept, and when, is the same.
"""

from __future__ import annotations

from idempotency_header_middleware import IdempotencyHeaderMiddleware
from idempotency_header_middleware.backends import MemoryBackend

from served import behind, counted, serve

serve(behind(IdempotencyHeaderMiddleware(counted(), backend=MemoryBackend())))
