"""Packages that only a part of mmstudy needs: its extras, as `pip install "mmstudy[study]"` names them."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Imports of packages that an extra brings; where one is missing, the error says how to install it.

    Raises:
        ImportError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        wanted = f'{error.name} is not installed: pip install "mmstudy[{extra}]"'
        raise ImportError(wanted, name=error.name) from error
