"""What an error of S3's or obstore's is about: its code, or a file's name. Pure.

    code_in(text) -> code          which OPERATOR and FULL explain
    strange(text) -> name          that obstore does not take, though S3 does: `orders//7.json`
    listing("shop/orders", {…})    `aws s3 ls`, of the very place, ready for a shell
    behind(name, prefix) -> name   where a list can go on: the least behind it that is a name

obstore gives a page of a list whole or not at all, and begins it behind a name that it takes. So
what sorts before a strange name on the same page (of a thousand) is not seen while that is there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Final

OPERATOR: Final = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "these credentials may not do that",
    "InvalidAccessKeyId": "this access key is not known",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "PermanentRedirect": "the bucket is in another region",
    "AuthorizationHeaderMalformed": "the bucket is in another region",
}
"""What S3 says that a person must mend."""
FULL: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"})

_code: Final = re.compile(r"<Code>(\w+)</Code>").search
_named: Final = re.compile(
    r'object with invalid path: [^"]*Path "(.*?)"(?: contained|: )', re.S
).search
_controls: Final = re.compile(r"[\x00-\x1f\x7f]").search
_LAST: Final = "\U0010fffd"


def listing(called: str, config: Mapping[str, str]) -> str:
    """`config`: what is said of endpoint and region; credentials are where they were found."""
    words = ["aws", "s3", "ls", f"s3://{called}/"]
    for name, flag in (("endpoint", "--endpoint-url"), ("region", "--region")):
        words += [flag, config[name]] if config.get(name) else []
    return shlex.join(words)


def code_in(text: str) -> str:
    """Empty: there is none."""
    found = _code(text)
    return found[1] if found else ""


def strange(text: str) -> str | None:
    found = _named(text)
    return found[1] if found else None


def behind(name: str, prefix: str) -> str | None:
    """None: there is no such name under this prefix."""
    for at in range(len(name) - 1, len(prefix), -1):
        for code in range(ord(name[at]) + 1, min(ord(name[at]) + 40, ord(_LAST))):
            found = f"{name[:at]}{chr(code)}"
            if not 0xD800 <= code < 0xE000 and _is_name(found):
                return found
    return None


def _is_name(name: str) -> bool:
    return not _controls(name) and not {"", ".", ".."} & {*name.split("/")}
