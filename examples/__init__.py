"""Programs to learn from: an orders service, and a demonstration that breaks it on purpose."""
