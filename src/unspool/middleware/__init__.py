"""Idempotency inside an application: for ASGI, WSGI, Django, and plain functions."""
