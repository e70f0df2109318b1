"""The size of the manifold of connected minima around a network: every estimator, and what they share."""

__all__ = [
    "asked",
    "between",
    "children",
    "crossings",
    "curvature",
    "dimension",
    "directions",
    "estimate",
    "estimators",
    "extent",
    "llc",
    "profiles",
    "rays",
    "simplex",
    "volume",
]
