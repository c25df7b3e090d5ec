"""How packets reach the other hosts. One package or module for each backend."""
