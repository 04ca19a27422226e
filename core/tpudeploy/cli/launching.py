"""From a request to its target, with what has to be found, unpacked or fetched first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpudeploy.launch import LaunchRequest, Target


def find_target(request: LaunchRequest, *, yes: bool = False, hub: str = "") -> Target:
    """Find what a request points at; asks before weights are fetched.

    :param request: its bundle or bmodel as the user wrote it: a path, or a name in the local store.
    :param yes: fetch without asking.
    :raises TpuDeployError: a name, option, bundle or checkpoint that is wrong; names are told first.
    """
    from tpudeploy.cli.bundles import local_bmodel, local_bundle
    from tpudeploy.cli.weights import ensure_weights
    from tpudeploy.launch import open_target
    from tpudeploy.launch.targets import check_names
    from tpudeploy.launch.usage import check_usage
    from tpudeploy.plugins import registry
    from tpudeploy.settings import load_settings

    if request.bmodel is not None:
        request = request.model_copy(update={"bmodel": local_bmodel(request.bmodel)})
    check_usage(request)
    found, settings = registry(), load_settings()
    if request.bundle is not None:
        folder = local_bundle(request.bundle, backend=request.backend, force=request.force)
        request = request.model_copy(update={"bundle": folder})
    else:
        known = check_names(request, found)
        if request.bmodel is None:
            ensure_weights(known, settings, model_dir=request.model_dir, yes=yes, hub=hub)
    return open_target(request, settings, found)
