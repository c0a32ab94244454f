"""The spool in LevelDB: a shelf for `keyed`."""
