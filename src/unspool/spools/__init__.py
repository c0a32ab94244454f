"""Durable custody of messages. `protocol` is the manual; `open` turns a URL into a spool."""
