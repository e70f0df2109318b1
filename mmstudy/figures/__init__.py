"""A Dataset in, a Figure out: the only room that draws."""

from mmstudy.core.extras import needed

with needed("figures"):
    import matplotlib  # noqa: F401
    import seaborn  # noqa: F401

__all__ = [
    "answer",
    "beyond",
    "estimators",
    "families",
    "manifold",
    "operators",
    "ranking",
    "rankings",
    "regimes",
    "style",
    "training",
]
