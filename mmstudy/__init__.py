"""Which expansion of a small trained network is worth its training? Operators, manifold estimators and the study."""

__version__ = "0.1.0"
