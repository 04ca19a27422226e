"""The bundled ways to run nets: ``cpu``, ``simulator``, and the binding of Sophgo's runtime that chips share."""
