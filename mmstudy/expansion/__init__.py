"""A trained network in, a wider or deeper one out: candidates, operators, and how a network is rebuilt."""

__all__ = [
    "asked",
    "candidate",
    "checkpoints",
    "copies",
    "deeper",
    "growth",
    "insertion",
    "new_units",
    "operators",
    "optimizers",
    "pools",
    "surgery",
]
