"""Tasks of models that see: a module each, with the row that the registry finds."""
