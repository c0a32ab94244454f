"""Moving house: messages from one spool to a file, from a file to a spool, from spool to spool."""
