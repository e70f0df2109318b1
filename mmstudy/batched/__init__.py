"""K networks as one: how they run, repeat what repeats, train, and are a function of their parameters."""

__all__ = [
    "asked",
    "augmentation",
    "connectivity",
    "derivatives",
    "determinism",
    "engine",
    "ensemble",
    "hooks",
    "likeness",
    "modes",
    "objective",
    "replay",
    "scoring",
    "tape",
    "training",
    "watch",
]
