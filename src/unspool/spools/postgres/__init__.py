"""The spool in PostgreSQL. `spool` opens it and has the verbs, `postgres.sql` the queries."""
