import json

import pytest

from tests.golden.curve import FILE, describe


@pytest.mark.golden
def test_the_recipe_has_the_loss_curve_it_always_had() -> None:
    stored, found = json.loads(FILE.read_text()), describe()
    assert found["config"] == stored["config"], "another config: python -m tests.golden.update"
    assert found["losses"] == pytest.approx(stored["losses"], abs=1e-6)
