"""Logs: one event, one line, on stderr. Text for a terminal, JSON for everything else.

The package logs through the standard library under `unspool.…`, so that whoever embeds it decides.
Only the command sets anything up, and it never logs bodies, credentials or keys.
"""

from __future__ import annotations

import logging
import sys

import structlog

from .wording import said

TRANSLATED = ("aio_pika", "aiormq")
"""Libraries whose errors reach us anyway, and are said in our words: theirs are traceback after
traceback while a server is away."""


def start(*, level: str, form: str) -> None:
    """Send the package's log to stderr. `form`: auto, json or text."""
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    stamped: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = (
        [
            # Without the frames' variables: they hold what we promise never to log.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(),
        ]
        if form == "json"
        else [
            _harmless,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=stamped,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    for name in TRANSLATED:
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    root = logging.getLogger("unspool")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())


def _harmless(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """What a service answered may be in the event, and a terminal obeys it. JSON escapes it."""
    event["event"] = said(str(event["event"]))
    return event
