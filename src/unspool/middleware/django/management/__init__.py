"""What one does by hand."""
