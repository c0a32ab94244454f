"""Brings requests in. `protocol` says to whom; `http` is the native door, `asgi` an application."""
