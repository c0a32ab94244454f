"""The smart client: keeps outstanding requests, resubmits, tries another server, a queue, a plan.

    from unspool import Client, AsyncClient, Delivered, Accepted, Queued, Rejected, Unknown

client      AsyncClient: the road of a request         blocking   Client: the same on a thread
plan        what to do next: pure                      route      does it: servers, then queues
budget      how much more may be sent than was asked   health     which servers may be tried
handover    offers to relays and queues                receipt    what is held of what they took
outbox      a spool at the sender's, and its sending   turn       whose turn it is to send
request     what is asked, made whole and checked      results    what became of it
options     how a client behaves: the table            events     what it tells as it happens
"""

from __future__ import annotations

from ..errors import Undelivered
from .blocking import Client
from .client import AsyncClient
from .events import Ended, Event, News, Offered, Tried
from .receipt import BlockingReceipt, Receipt, Status
from .request import Request
from .results import (
    Accepted,
    Bounced,
    Delivered,
    FellBack,
    Headers,
    Progress,
    Queued,
    Rejected,
    Response,
    Result,
    Settled,
    Try,
    Unknown,
)

__all__ = [
    "Accepted",
    "AsyncClient",
    "BlockingReceipt",
    "Bounced",
    "Client",
    "Delivered",
    "Ended",
    "Event",
    "FellBack",
    "Headers",
    "News",
    "Offered",
    "Progress",
    "Queued",
    "Receipt",
    "Rejected",
    "Request",
    "Response",
    "Result",
    "Settled",
    "Status",
    "Tried",
    "Try",
    "Undelivered",
    "Unknown",
]
