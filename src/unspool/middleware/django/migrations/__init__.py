"""The table of atomic views."""
