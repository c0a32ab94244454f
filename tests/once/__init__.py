"""`once` and co-commit, against real databases and real processes."""
