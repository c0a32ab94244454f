"""unspool: email-grade delivery for HTTP.

A relay in front of any HTTP service: what the service answers is passed on; what it cannot answer
is saved durably, answered 202 with a receipt, and delivered later.
"""

__version__ = "0.1.0"
