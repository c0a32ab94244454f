"""Benchmarks: the numbers of the design, measured side by side in one run on one machine.

`__main__` is the command and lists the rows; docs/performance.md tells what the last run said.
"""
