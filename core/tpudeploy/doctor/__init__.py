"""Whether this machine is ready: each part of it looked at, with a verdict and a remedy."""

from tpudeploy.doctor.examination import examine
from tpudeploy.doctor.finding import Finding

__all__ = ["Finding", "examine"]
