import pytest

from tests.parity.reference import exact_norms


@pytest.fixture
def _exact_norms():
    with exact_norms():
        yield
