"""Parts of the conformance kit that import no torch before a check runs."""
