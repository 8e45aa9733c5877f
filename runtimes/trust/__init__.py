"""Code that comes with a model: what it is, who approved it, and what may run."""
