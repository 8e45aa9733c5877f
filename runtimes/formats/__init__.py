"""Model files, read as hostile: what they are, what they hold, what they will take."""
