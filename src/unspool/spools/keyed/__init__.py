"""What the spools of one process share: `store` keeps the contract over a `shelf` of bytes."""
