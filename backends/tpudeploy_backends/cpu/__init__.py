"""The backend ``cpu``: ONNX bundles on this machine's processor, through onnxruntime."""
