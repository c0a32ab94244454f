"""manage.py unspool_keys, unspool_settle, unspool_sweep."""
