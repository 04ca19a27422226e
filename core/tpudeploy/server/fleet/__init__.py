"""Replicas in other processes and on other machines, as Ray Serve deployments; :mod:`~.cluster` alone knows Ray.

The HTTP side, the queue and everything that is promised about them stay in the process that was started: a replica is
a worker that happens to be elsewhere. See docs/explanation/fleet.md.
"""
