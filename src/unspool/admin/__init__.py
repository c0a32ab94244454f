"""For people: the command line and what it shows. May import everything; nothing imports it."""
