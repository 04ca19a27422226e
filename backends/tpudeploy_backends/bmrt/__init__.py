"""Sophgo's runtime libraries libbmrt and libbmlib through ctypes: what the simulator and real chips have in common.

Nothing is built on the device. The structures and calls follow the public headers of libsophon
(``bmdef.h``, ``bmlib_runtime.h``, ``bmruntime_interface.h``).
"""
