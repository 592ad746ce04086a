"""Checkpoints: read, convert to standard W8A8 ones that hold a pattern's zeros, and inspect."""
