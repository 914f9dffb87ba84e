import harness_example

from harness.testing import parametrize_with_checks


@parametrize_with_checks(harness_example)
def test_conformance(check):
    check()
