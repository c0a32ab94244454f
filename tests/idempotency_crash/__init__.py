"""What the middleware promises while processes die, sleep, disagree and lose their disk.

Real processes with real sockets over one spool. The only evidence is what senders were told and
what the application wrote into a file of its own: the middleware's word counts for nothing.

    ledger.py       the application's own ledger: who began and who ended, by O_APPEND
    application.py  the application behind the middleware, and a naive middleware to convict
    serve.py        a process: uvicorn, the middleware, the application; forked in milliseconds
    fleet.py        several of them over one spool, for asking, killing, pausing
    checker.py      pure functions over what senders were told and the ledger

Wire, disks and rounds are those of `crash`. UNSPOOL_CRASH_ROUNDS=20 makes the race 1 000 rounds.
"""
