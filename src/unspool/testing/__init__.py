"""What tests of unspool, and of what is built on it, are made with. Shipped, public, kept stable.

idempotency    does this server keep its keys right? Row by row, over HTTP, for anybody's server
counter        the service whose effects are counted, which that is asked of
conformance    is this a spool? Clause by clause, for spools of other people too
clock          virtual time: waiting takes none, and a deadlock is an error
world          a simulated world: a destination with weather, a node that can be killed, a history
door           in it, a node's way to its spool, with troubles of its own
"""
