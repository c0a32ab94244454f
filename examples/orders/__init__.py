"""An example service that takes orders, keeps a ledger and can be told to misbehave."""
