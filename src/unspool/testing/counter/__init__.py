"""The counter service: an application whose every effect is counted, to be asked about its keys.

    asgi.counter(file)      the service as an ASGI application      asgi.guarded(app)  who asks
    wsgi.counter(file)      as a WSGI application                    wsgi.guarded(app)
    urls                    as a Django urlconf                       (see its head)

Put what is to be tried in front of it (a relay, a middleware, a gateway), and ask it with
`unspool check-idempotency`. By itself it knows nothing of keys: every request counts.

    POST, PUT, PATCH, DELETE /count/SUBJECT?do=STEPS   counts, and does as it is told (`doing.Step`)
    GET /count/SUBJECT                                 {"count": 2, "most_at_once": 1, "live": 0, …}
    PUT /count/SUBJECT/ended                           ends the runs of it that last until told
    GET /counter                                       {"counter": 1, "offers": […], "mounts": […]}
    PUT /callers/NAME/revoked                          NAME gets 403 from now on, if guarded

STEPS is a JSON list: the first run of a subject does what the first step says, the second what the
second says, and so on; the last step holds for all that follow. So a repeat that is sent on can be
told from the first by what it gets, though the two requests are the same to the byte.

A path may begin with the name of a mount, `/short/count/…`: the same service, behind a middleware
that is set up otherwise there (see `unspool.testing.idempotency.service.MOUNTS`).

Counts are in a SQLite file, so that several processes and machines with one disk count together.
Nothing is synced: a power cut loses counts, kill -9 does not. It is for tests: it does what anybody
tells it, within limits.
"""
