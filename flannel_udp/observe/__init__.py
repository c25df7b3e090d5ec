"""What the daemon tells others: health, metrics, status, and checks of all of it."""
