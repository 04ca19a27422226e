"""Acme's models and chip for tpudeploy."""
