"""tpudeploy: run language models, as their authors publish them, on Sophgo BM1684X TPUs."""

from tpudeploy.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl"]

__version__ = "0.1.0"
