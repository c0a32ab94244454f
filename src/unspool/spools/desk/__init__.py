"""The desk of a spool that one process has: `serving` it, and the `visit` of an operator."""
