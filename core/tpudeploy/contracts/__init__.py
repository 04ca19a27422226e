"""The typed values that rooms and plugins exchange. Imports no torch, transformers, onnx or typer."""
