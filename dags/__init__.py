"""When, where, and who is told."""
