"""Leases become routes: one writer computes the difference and hands it to the backend."""
