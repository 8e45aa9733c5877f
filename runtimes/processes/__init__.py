"""Child processes: how they are started, confined, spoken to and ended. Engines, chat templates and exports run in one."""
