"""The shipped base model is what MINI_WORLD asks for, as `harness mini properties` measures it.

The longest test of the suite (four fine-tunings): it stands for all that is built on the base model.
"""

import pytest
from rich.console import Console

from harness.studies import mini_properties


@pytest.mark.exhaustive("properties")
def test_the_shipped_seed_model_has_every_property() -> None:
    found = mini_properties.measure(None, Console(quiet=True))
    assert len(found) == 15
    missing = [
        f"{item.name}: {item.value:.2f}, not in {item.low}..{item.high}" for item in found if not item.holds
    ]
    assert not missing
