"""A Django project to be tested against: orders, in a database of its own."""
