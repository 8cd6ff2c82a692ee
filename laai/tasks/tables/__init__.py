"""Built-in task tables, written by experiments/tables/build.py."""
