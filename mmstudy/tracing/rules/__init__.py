"""What each operation does to the units of its inputs, a few lines for each."""

__all__ = ["contractions", "layers", "norms", "pieces", "views"]
