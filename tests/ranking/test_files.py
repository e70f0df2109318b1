import pytest

from mmstudy.ranking import files


def test_a_package_that_is_missing_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from no_such_package.parts import Network\n")
    with pytest.raises(ValueError, match=r"mine\.py needs the package no_such_package, which is not installed"):
        files.defined(path)


def test_what_fails_otherwise_is_told_as_it_is(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("1 / 0\n")
    with pytest.raises(ValueError, match=r"mine\.py cannot be run as Python: division by zero"):
        files.defined(path)
