"""The checks of the conformance kit; `harness.testing` runs them."""
