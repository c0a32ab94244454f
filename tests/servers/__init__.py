"""Other people's servers, started by the tests that need them, on free ports in folders of theirs.

Nothing here is installed by the tests. At home a missing program skips; where CI is set it fails.
"""
