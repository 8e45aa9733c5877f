"""Tasks of models that read text: a module each, with the row that the registry finds."""
