"""Routes that are made from the tasks' rows."""
