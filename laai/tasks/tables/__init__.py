"""Built-in task tables, written by experiments/build_task_tables.py."""
