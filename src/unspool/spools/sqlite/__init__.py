"""The spool in one SQLite file. `spool` opens it, `store` has the verbs, `schema` the tables."""
