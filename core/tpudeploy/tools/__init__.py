"""Python functions as tools: described to a model from their signatures, called with checked arguments."""
