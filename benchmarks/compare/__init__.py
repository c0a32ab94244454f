"""Other people's idempotency, asked what ours is asked: see `__main__`.

packages.py     which packages, how each is set up, and what is installed for it
adapters/       one small program for each, run in its own environment
__main__.py     installs, starts, asks, prints
"""
