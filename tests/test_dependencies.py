"""What is installed with this project: no release known to be malicious, and versions within the stated ranges."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}  # GHSA-w37p-236h-pfx3


@pytest.fixture(scope="module")
def stated():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {(found := Requirement(line)).name: found.specifier for line in lines}


@pytest.fixture(scope="module")
def pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize(("name", "version"), [(n, v) for n, versions in MALICIOUS.items() for v in versions])
def test_malicious_releases_are_outside_the_ranges(stated, pinned, name, version):
    assert version not in stated[name]
    assert pinned[name] != version


def test_what_was_tested_is_within_what_is_stated(stated, pinned):
    for name, specifier in stated.items():
        assert pinned[name] in specifier, name
