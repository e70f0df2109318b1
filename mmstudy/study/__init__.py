"""The experiment: what is measured on candidates, the sweep over tasks, and how well predictors order gains."""

__all__ = [
    "derived",
    "design",
    "draws",
    "entries",
    "intervals",
    "judging",
    "policies",
    "predictions",
    "predictors",
    "probes",
    "protocol",
    "references",
    "rivals",
    "signals",
    "statistics",
    "summaries",
    "sweep",
    "trials",
]
