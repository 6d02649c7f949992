"""A room for each kind of user whose sandboxes there are."""

from collections.abc import Generator

import pytest
from rooms import KINDS, Room, room

from automagik.testing.needs import need

__all__: list[str] = []


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Generator[Room]:
    need("bubblewrap")
    with room(str(request.param)) as made:
        yield made
