"""The decisions. Values in, values out: no IO, no clock, no randomness, no logging.

A test of the imports holds this package to it. Times come in as integer milliseconds since 1970,
chance comes in as a number between 0 and 1.
"""
