"""Which expansion of one's own network is worth its training: the study's findings as a tool."""

__all__ = [
    "asked",
    "places",
    "policy",
    "pool",
    "posterior",
    "priors",
    "report",
    "rows",
    "settings",
    "together",
    "training",
]
