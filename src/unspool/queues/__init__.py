"""Other people's queue servers: custody is handed over to them, and brought back."""
