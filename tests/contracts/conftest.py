"""An empty store of each kind, in a folder of the test's own."""

from pathlib import Path

import pytest

from asynctask.stores.base import Store
from testkit import STORES, StoreMaker


@pytest.fixture(params=STORES, ids=list(STORES))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> StoreMaker:
    """Makes one that keeps at least so many ended runs; of a store on disk, always the same file."""
    return lambda size=1000, **options: STORES[request.param](tmp_path, size, **options)


@pytest.fixture
def store(make: StoreMaker) -> Store:
    return make()
