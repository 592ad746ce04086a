"""Pruning to the patterns: magnitude, Wanda and SparseGPT, one decoder block at a time."""
