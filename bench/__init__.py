"""Benchmarks: the parts and the whole overlay, always against a yardstick in the same rounds."""
