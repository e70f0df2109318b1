"""Which expansion of one's own network is worth its training: the study's findings as a tool."""

__all__ = [
    "asked",
    "files",
    "fingerprints",
    "foretold",
    "given",
    "loops",
    "places",
    "policy",
    "pool",
    "posterior",
    "priors",
    "randomness",
    "report",
    "rows",
    "settings",
    "together",
    "training",
    "words",
]
