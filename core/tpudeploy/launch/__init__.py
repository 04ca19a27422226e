"""From a user's words to a loaded model: for the command line, the server and the benchmarks alike.

Opening a bundle imports no torch, transformers or onnx; those are loaded only where a bundle has to be built.
"""

from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.launch.request import LaunchRequest
from tpudeploy.launch.targets import Target, open_target
from tpudeploy.launch.text import TextTools

__all__ = ["LaunchRequest", "LoadedModel", "Target", "TextTools", "open_target"]
