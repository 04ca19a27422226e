"""The backend ``simulator``: bmodel bundles on TPU-MLIR's software BM1684X.

The simulated chip lives in a process of its own, because its library ends the process it is in when memory runs out or
an assertion fails, and writes to standard output at every launch. What runs there is the same binding
(:mod:`tpudeploy_backends.bmrt`) that drives real chips within the user's process.
"""
