"""Benchmarks: fixed seeds, a digest of every result, and a small run of each in the tests."""
