"""A shop on FastAPI in which repeats have no effect, and what fails is done later."""
