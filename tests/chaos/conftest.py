"""The chaos tests use the recipes and tiny models of the oracle tests. --long: the full counts of reliability.md 8."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "oracle"))


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the full counts instead of the short form")


@pytest.fixture
def rounds(request):
    """rounds(short, long) = how often to repeat."""
    return lambda short, long: long if request.config.getoption("--long") else short
