"""A metastable failure, made on purpose in virtual time: naive retries against the smart client."""
