"""Pictures and files in requests: where they come from, how they are decoded, and what is drawn on them."""
