"""What the pages say, done."""
