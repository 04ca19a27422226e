"""Scripts that run inside TPU-MLIR's own Python 3.10, never inside tpudeploy's.

They import nothing of tpudeploy: the private environment does not have it.
"""
