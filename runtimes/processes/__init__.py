"""Child processes: how they are confined, started, spoken to and ended."""
