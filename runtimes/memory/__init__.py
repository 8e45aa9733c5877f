"""Which models are in memory, who leaves, and who died."""
