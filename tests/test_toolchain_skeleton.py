"""Reading an ONNX file without its weights gives the same model as reading it with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from tpudeploy.compile.toolchain.inside import skeleton  # noqa: E402

LARGE = (300, 257)


def model(tmp_path: Path, *, external: bool = False) -> Path:
    """Large and small weights, float32, float16, int64 and one of a type that is not mapped."""
    random = np.random.default_rng(0)
    arrays = {
        "large": random.standard_normal(LARGE).astype(np.float32),
        "half": random.standard_normal(LARGE).astype(np.float16),
        "whole": random.integers(0, 9, LARGE),
        "small": random.standard_normal(7).astype(np.float32),
        "scalar": np.float32(3).reshape(()),
    }
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "large"], ["y"], doc_string="ü" * 300)],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, LARGE)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, LARGE)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    # A tensor whose data are not raw.
    graph.initializer.append(helper.make_tensor("listed", onnx.TensorProto.FLOAT, (20_000,), range(20_000)))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    path = tmp_path / "model.onnx"
    if external:
        onnx.save(made, str(path), save_as_external_data=True, location="model.bin", size_threshold=4)
    else:
        onnx.save(made, str(path))
    return path


@pytest.mark.parametrize("external", [False, True])
def test_nothing_is_lost(external: bool, tmp_path: Path) -> None:
    path = model(tmp_path, external=external)
    expected = onnx.load(str(path))
    light, arrays = skeleton.read(path)
    assert set(arrays) == {"large", "half"}
    for tensor in expected.graph.initializer:
        if tensor.name in arrays:
            np.testing.assert_array_equal(arrays[tensor.name], onnx.numpy_helper.to_array(tensor))
            assert not arrays[tensor.name].flags.writeable
    for tensor in (*light.graph.initializer, *expected.graph.initializer):
        if tensor.name in arrays:
            tensor.ClearField("raw_data")
            tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    assert light == expected


def test_weights_stay_on_disk(tmp_path: Path) -> None:
    light, _ = skeleton.read(model(tmp_path))
    whole = onnx.numpy_helper.to_array(next(t for t in light.graph.initializer if t.name == "whole"))
    assert light.ByteSize() < whole.nbytes + 100_000


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = model(tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut short"):
        skeleton.read(path)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x0f" * 100)
    with pytest.raises(ValueError, match="not an ONNX file"):
        skeleton.read(path)


def test_missing_external_data_is_an_error(tmp_path: Path) -> None:
    path = model(tmp_path, external=True)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(FileNotFoundError):
        skeleton.read(path)
