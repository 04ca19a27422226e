"""Bmodel files without their weights, and weights without the compiler.

The instructions of a net do not depend on its weights' values, and the bytes of its weights do not depend on the net.
So the compiler compiles each net *shape* once, over random weights (``chip_template``); from the result this package
learns which weight lies where in which form (``coefficients``), and keeps the rest as a *hollow* file in which a
stand-in of a few bytes takes the place of each large block (``hollow``). The weights of a layer are then written
directly in those forms (``forms``), the vendor's model_tool joins the hollow files, and the stand-ins of what it wrote
are filled (``joined``).
"""
