"""What one process leaves to the next, and how the next one continues with it."""
