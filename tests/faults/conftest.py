"""Fixtures of the fault suite."""

import pytest

from tests.conftest import CACHE
from tests.faults.processes import EVERYTHING, start_server
from tests.faults.records import Records
from tests.faults.suite import Suite


@pytest.fixture(scope="session")
def suite(tmp_path_factory, request):
    """Return the suite, with its server started."""
    start_server(EVERYTHING, CACHE.with_name("jax-faults"))
    again = request.config.getoption("--again")
    return Suite(tmp_path_factory.mktemp("faults"), Records(), again=again)
