"""What the tests of evaluators share."""

import pytest

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data import Scenes


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone("scenes-parts")


@pytest.fixture(scope="session")
def scenes() -> list[Example]:
    """Six test examples of the lab."""
    return list(Scenes(num_test=6).examples("test"))
