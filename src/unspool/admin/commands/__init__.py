"""The commands of `unspool`, one file for each or for each family."""
