"""django-idempotency-key: its middleware for all views, as it comes (a key is required, memory).

At its best: keys optional on the view, an encoder of our own (its hook) that takes the caller and
not the token, the original status for a replay, Django's cache, and a lock that waits for 5 s.
"""

from __future__ import annotations

from django_ import configured

from served import BEST, threads

if BEST:
    application = configured(
        "idempotency_key.middleware.ExemptIdempotencyKeyMiddleware",
        urls="urls_of_yoyo",
        IDEMPOTENCY_KEY={
            "ENCODER_CLASS": "encoder_of_yoyo.ByCaller",
            "CONFLICT_STATUS_CODE": None,
            "STORAGE": {"CLASS": "idempotency_key.storage.CacheKeyStorage"},
            "LOCK": {"TIMEOUT": 5.0},
        },
    )
else:
    application = configured("idempotency_key.middleware.IdempotencyKeyMiddleware")

threads(application)
