"""The environment is written down three times, for pip, for conda and as a lock: the three agree."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def bounds(lines):
    """Package → version bounds, as strings that compare."""
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(package.name): str(package.specifier) for package in requirements}


EXTRAS = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
REQUIRED = bounds([*PROJECT["dependencies"], *(line for line in EXTRAS if not line.startswith(PROJECT["name"]))])
CONDA_NAMES = {"torch": "pytorch"}
LOCKED = bounds(line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))


def conda_parts():
    (pip,) = (part["pip"] for part in CONDA["dependencies"] if isinstance(part, dict))
    return bounds(part for part in CONDA["dependencies"] if isinstance(part, str)), pip


def test_conda_and_pip_ask_for_the_same():
    conda, pip = conda_parts()
    assert conda.pop("python") == PROJECT["requires-python"]
    assert conda.pop("pip") == ""
    assert "-e ." in pip
    only_pip = bounds(line for line in pip if line != "-e .")
    assert not conda.keys() & only_pip.keys()
    assert conda | only_pip == {CONDA_NAMES.get(name, name): bound for name, bound in REQUIRED.items()}


def test_conda_takes_packages_from_conda_forge_only():
    assert CONDA["channels"] == ["conda-forge", "nodefaults"]
    assert CONDA["name"] == PROJECT["name"]


@pytest.mark.parametrize("name", REQUIRED)
def test_lock_satisfies_the_bounds(name):
    version = LOCKED[name].removeprefix("==")
    assert Requirement(f"{name}{REQUIRED[name]}").specifier.contains(version)


def test_lock_pins_everything_to_public_versions():
    assert all(bound.startswith("==") and "+" not in bound for bound in LOCKED.values())
    assert PROJECT["name"] not in LOCKED


def test_no_torchvision():
    conda, pip = conda_parts()
    assert "torchvision" not in REQUIRED | LOCKED | conda | dict.fromkeys(pip)
