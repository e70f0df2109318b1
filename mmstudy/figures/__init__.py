"""A Dataset in, a Figure out: the only room that draws."""

__all__ = ["estimators", "manifold", "operators", "results", "style"]
