"""Tasks that read more than one kind of input."""
