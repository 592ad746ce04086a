"""What pruning and quantising cost: perplexity, agreement, divergence, and patterns per layer."""
