"""URLs as people may see them: without what opens the door behind them.

    concealed("postgres://me:secret@db/mail")   "postgres://me:...@db/mail"

Of `user:password@` the password goes, and all of what stands there without a colon, for it may be
a token (nats://token@host); of PostgreSQL's it is always a user. In the query go the values of
names that sound like a secret. Where it is not clear where a password ends, more is left out than
need be: up to the last @ of the word.
"""

from __future__ import annotations

import re
from typing import Final

_LONE: Final = r"[^\s:/@?#,]+@[^\s@]*(?:\s|$)"
_USER: Final = re.compile(
    rf"(?<!/)//(?!/)(?!(?<=postgres://){_LONE})(?!(?<=postgresql://){_LONE})"
    r"(?:([^\s:/@?#,]*)(:))?\S*@"
)
_QUERY: Final = re.compile(
    r"([?&;][\w.-]*(?:passw|pwd|token|secret|credential|sslkey|signature)[\w.-]*=)[^\s&;\"']+",
    re.IGNORECASE,
)


def concealed(text: str) -> str:
    """`text` with the passwords of all URLs in it left out."""
    return _QUERY.sub(r"\1...", _USER.sub(r"//\1\2...@", text))
