"""An engine in a process of its own: the parent's half, the child's half, and what they say to each other."""
