"""The demonstration: requests that survive a broken service. `python -m examples.demo`."""
