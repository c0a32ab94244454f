"""by_user: the scope of an application whose callers sign in with django.contrib.auth.

    UNSPOOL = {"scope": "unspool.middleware.django.by_user", …}

Whoever is not signed in is nobody: a key of theirs is refused with 403. A session that ends and a
new one are one caller, for it is the user who counts.
"""

from __future__ import annotations

from typing import Any


def by_user(request: Any) -> str | None:
    user = request.user
    if not user.is_authenticated:
        return None
    return f"{user._meta.label_lower}:{user.pk}"
