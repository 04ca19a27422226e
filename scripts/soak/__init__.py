"""Parts of ``scripts/soak_server.py``."""
