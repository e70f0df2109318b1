"""K networks as one: how they run, repeat what repeats, train, and are a function of their parameters."""

__all__ = [
    "asked",
    "audit",
    "augmentation",
    "connectivity",
    "costs",
    "derivatives",
    "determinism",
    "engine",
    "ensemble",
    "hooks",
    "likeness",
    "modes",
    "objective",
    "places",
    "replay",
    "scoring",
    "tape",
    "training",
    "watch",
]
