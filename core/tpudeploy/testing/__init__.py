"""What plugin authors need for their tests: the conformance suite of backends, and tiny models."""
