"""A trained network in, a wider or deeper one out: candidates, operators, and how a network is rebuilt."""

__all__ = [
    "asked",
    "attributes",
    "candidate",
    "checkpoints",
    "copies",
    "coverage",
    "deeper",
    "estimates",
    "exactness",
    "growth",
    "insertion",
    "new_units",
    "operators",
    "optimizers",
    "pools",
    "replacing",
    "surgery",
]
