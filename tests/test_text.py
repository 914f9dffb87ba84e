from __future__ import annotations

import pytest

from harness.text import counted


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 trials"), (1, "1 trial"), (2, "2 trials"), (1234, "1,234 trials")]
)
def test_a_count_has_the_noun_that_fits(count, text):
    assert counted(count, "trial") == text
