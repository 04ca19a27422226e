"""Running a bundle: verified files, the KV cache, passes over the nets, sampling, generation, conversations.

One code path above the backend contract for every backend. Imports no torch, transformers, onnx or typer.
"""
