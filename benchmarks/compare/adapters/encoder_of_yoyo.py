"""An encoder for django-idempotency-key that goes by who is asking, and not by the token."""

from __future__ import annotations

import hashlib
from typing import Any

from idempotency_key.encoders import IdempotencyKeyEncoder


class ByCaller(IdempotencyKeyEncoder):
    def encode_key(self, request: Any, key: str) -> str:
        parts = (key, request.caller, request.method, request.get_full_path())
        digest = hashlib.sha256()
        for part in (*(part.encode() for part in parts), request.body):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()
