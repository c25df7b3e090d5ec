"""Benchmarks of the parts and of the whole overlay, relative to a baseline in the same rounds."""
