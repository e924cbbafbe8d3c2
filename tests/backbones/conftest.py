"""Tiny directories of every family, each written once."""

import pytest
from processors import write_family


@pytest.fixture(scope="session")
def family_path(tmp_path_factory):
    """Gives the directory of a family, by its name."""
    written = {}

    def path(name):
        if name not in written:
            written[name] = tmp_path_factory.mktemp("family")
            write_family(name, written[name])
        return written[name]

    return path
