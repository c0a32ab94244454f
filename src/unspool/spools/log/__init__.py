"""The spool in an append-only log: a shelf for `keyed`. `spool` opens it."""
