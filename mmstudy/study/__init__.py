"""The experiment: what is measured on candidates, the sweep over tasks, and how well predictors order gains."""

__all__ = ["entries", "evaluation", "measurements", "predictors", "protocol", "references", "sweep"]
