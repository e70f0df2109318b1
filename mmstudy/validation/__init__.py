"""The truth that estimators and operators are held against: landscapes, symmetries, promises."""

__all__ = ["effects", "landscapes", "preservation", "singular", "symmetries", "truths"]
