"""Which axes of which tensors change together when a layer gets wider, found by following one call."""

__all__ = [
    "axes",
    "calls",
    "couplings",
    "exporting",
    "graph",
    "layouts",
    "matching",
    "rules",
    "settling",
    "trace",
    "trees",
]
