"""Crash tests: real processes, real sockets, real disks. Nothing in here knows the relay's inside.

    history.py      what senders were told and what the service did: the only evidence
    checker.py      pure functions over a history: what must never have happened
    wire.py         the smallest HTTP client that can tell a whole answer from a broken one
    service.py      the service behind the relay, with a ledger of its own and weather on command
    load.py         senders who do what a good sender does: the same request again, same key
    processes.py    the relay as a process, for killing
    launch.py       a relay that starts in milliseconds, and one that lies about its syncs
    disks.py        file systems on loop devices, and the power cut
    trace.py        what strace saw, in its order

UNSPOOL_CRASH_ROUNDS multiplies what a run does: 1 is what CI does in under five minutes,
docs/internals/proof.md says what larger numbers showed.
"""
