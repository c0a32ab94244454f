"""The custody chain. `open` makes one of several URLs, `spool` says what holds."""
