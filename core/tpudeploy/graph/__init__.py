"""The decoder in torch: as published (the reference) and as sliced for export; writing ONNX."""
