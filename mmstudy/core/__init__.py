"""What everything stands on: random streams, results on disk, small networks, tasks, and which code is which."""

__all__ = [
    "arguments",
    "cluster",
    "datasets",
    "extras",
    "families",
    "memory",
    "networks",
    "openml",
    "parameters",
    "paths",
    "precision",
    "processes",
    "progress",
    "results",
    "seeds",
    "slurm",
    "sources",
    "states",
    "tasks",
    "threads",
]
