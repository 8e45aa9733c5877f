"""What models do: a folder for each kind, a module and a row for each task."""

from lfx_local_runtimes.runtimes.tasks.registry import family_of, register_task, task_row, task_rows

__all__ = ["family_of", "register_task", "task_row", "task_rows"]
