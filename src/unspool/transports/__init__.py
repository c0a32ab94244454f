"""Carries one attempt out. `protocol` says how; `http` is HTTP/1.1."""
