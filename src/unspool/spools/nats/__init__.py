"""The spool in NATS JetStream. `open` opens it and is its manual, `spool` has the verbs."""
