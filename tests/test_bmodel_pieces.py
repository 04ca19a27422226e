"""Bmodels without their blocks, and weights in the forms of the chip: on files of the vendor's tools, without those."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import numpy as np
import pytest

from tpudeploy.compile.bmodel.coefficients import CoefficientMap, UnknownLayoutError, learn_map, write_coefficients
from tpudeploy.compile.bmodel.description import read_description
from tpudeploy.compile.bmodel.forms import Form, WeightForms
from tpudeploy.compile.bmodel.hollow import dress_hollow, same_bmodel, write_hollow
from tpudeploy.compile.bmodel.joined import fill_hollow
from tpudeploy.compile.chip_template import copy_block
from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.contracts.quant import QuantMode, QuantScheme, resolve_quant
from tpudeploy.errors import CompileError
from tpudeploy_backends.bmrt.bmodel import read_bmodel

DATA = Path(__file__).parent / "data"
INT8 = resolve_quant(QuantMode.INT8, DType.F16)


@pytest.fixture(scope="module", params=["static", "dynamic"])
def vendors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bmodel of several nets that the vendor's model_tool joined."""
    path = tmp_path_factory.mktemp("vendor") / "model.bmodel"
    path.write_bytes(lzma.decompress((DATA / f"llm_convert-{request.param}.bmodel.xz").read_bytes()))
    return path


class TestHollow:
    def test_filled_again_it_is_the_same_file(self, vendors: Path, tmp_path: Path) -> None:
        hollow, filled = tmp_path / "hollow.bmodel", tmp_path / "filled.bmodel"
        hollowed = write_hollow(vendors, hollow)
        files = {}
        for digest in hollowed.blocks:
            files[digest] = tmp_path / digest
            copy_block(vendors, hollowed, digest, files[digest])
            assert hashlib.sha256(files[digest].read_bytes()).hexdigest() == digest
        assert len(files) > 2
        assert hollow.stat().st_size < vendors.stat().st_size / 2
        fill_hollow(hollow, filled, files)
        assert filled.read_bytes() == vendors.read_bytes()

    def test_it_is_a_bmodel_itself(self, vendors: Path, tmp_path: Path) -> None:
        write_hollow(vendors, tmp_path / "hollow.bmodel")
        nets, hollow_nets = (read_bmodel(path).nets for path in (vendors, tmp_path / "hollow.bmodel"))
        assert [net.name for net in nets] == [net.name for net in hollow_nets]
        assert [net.shapes for net in nets] == [net.shapes for net in hollow_nets]

    def test_a_block_that_is_missing_is_named(self, vendors: Path, tmp_path: Path) -> None:
        write_hollow(vendors, tmp_path / "hollow.bmodel")
        with pytest.raises(CompileError, match="is missing"):
            fill_hollow(tmp_path / "hollow.bmodel", tmp_path / "filled.bmodel", {})

    def test_one_bit_makes_a_difference(self, vendors: Path, tmp_path: Path) -> None:
        write_hollow(vendors, tmp_path / "a.bmodel")
        content = bytearray((tmp_path / "a.bmodel").read_bytes())
        description = read_description(tmp_path / "a.bmodel")
        start, _ = max((description.binary(place) for place in description.binaries), key=lambda block: block[1])
        content[description.data_start + start] ^= 1
        (tmp_path / "b.bmodel").write_bytes(content)
        assert same_bmodel(tmp_path / "a.bmodel", tmp_path / "a.bmodel")
        assert not same_bmodel(tmp_path / "a.bmodel", tmp_path / "b.bmodel")

    def test_what_is_no_bmodel(self, tmp_path: Path) -> None:
        (tmp_path / "x.bmodel").write_bytes(b"not a model" * 100)
        with pytest.raises(CompileError, match=r"x\.bmodel is not a bmodel"):
            write_hollow(tmp_path / "x.bmodel", tmp_path / "y.bmodel")

    def test_a_name_that_does_not_fit(self, vendors: Path, tmp_path: Path) -> None:
        description = read_description(vendors)
        longest = max(description.text(place) for place in description.names)
        with pytest.raises(CompileError, match="is longer than"):
            description.rename(description.names[0], "x" * (len(longest) + 100))

    def test_only_a_net_alone_is_dressed(self, vendors: Path, tmp_path: Path) -> None:
        write_hollow(vendors, tmp_path / "hollow.bmodel")
        with pytest.raises(ValueError, match="unpack"):
            dress_hollow(tmp_path / "hollow.bmodel", tmp_path / "dressed.bmodel", "x", {})


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def compiled(forms: list[tuple[WeightForms, Form]]) -> tuple[Array, list[tuple[int, int]]]:
    """Weights one after another, each in 4096 bytes or a multiple, as the compiler lays them out."""
    pieces, regions, position = [], [], 0
    for weight, form in forms:
        content = np.concatenate(list(weight.parts(form)))
        size = -(-content.size // 4096) * 4096
        pieces.append(np.pad(content, (0, size - content.size)))
        regions.append((position, size))
        position += size
    return np.concatenate(pieces), regions


class TestLayout:
    weights = (WeightForms("w", numbers(128, 192), INT8), WeightForms("norm", numbers(128, seed=1), INT8))

    def forms(self) -> list[tuple[WeightForms, Form]]:
        matrix, norm = self.weights
        return [(matrix, Form.SCALES), (norm, Form.NUMBERS), (matrix, Form.VALUES), (matrix, Form.ZERO_POINTS)]

    def test_it_is_learnt_and_used_for_other_weights(self, tmp_path: Path) -> None:
        layout = learn_map(*compiled(self.forms()), self.weights)
        assert [(item.weight, item.form) for item in layout.coefficients] == [(w.name, f) for w, f in self.forms()]
        others = {
            "w": WeightForms("w", numbers(128, 192, seed=5), INT8),
            "norm": WeightForms("norm", numbers(128, seed=6), INT8),
        }
        expected, _ = compiled([(others[weight.name], form) for weight, form in self.forms()])
        digest = write_coefficients(layout, others, tmp_path / "w.bin")
        assert (tmp_path / "w.bin").read_bytes() == expected.tobytes()
        assert hashlib.sha256(expected.tobytes()).hexdigest() == digest

    def test_a_matrix_is_read_alike_however_it_lies_in_memory(self) -> None:
        array = numbers(128, 192)
        for form in Form:
            views = (array, np.ascontiguousarray(array.T).T)
            one, other = (np.concatenate(list(WeightForms("w", view, INT8).parts(form))) for view in views)
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("position", [0, 5000, -1])
    def test_one_unexplained_byte_is_too_much(self, position: int) -> None:
        content, regions = compiled(self.forms())
        content[position] ^= 1
        with pytest.raises(UnknownLayoutError):
            learn_map(content, regions, self.weights)

    def test_bytes_between_regions(self) -> None:
        content, regions = compiled(self.forms())
        with pytest.raises(UnknownLayoutError, match="lies"):
            learn_map(content, regions[:1] + regions[2:], self.weights)

    def test_a_layer_of_another_size(self, tmp_path: Path) -> None:
        layout = learn_map(*compiled(self.forms()), self.weights)
        others = {"w": WeightForms("w", numbers(128, 128), INT8), "norm": self.weights[1]}
        with pytest.raises(CompileError, match="another size"):
            write_coefficients(layout, others, tmp_path / "w.bin")

    def test_numbers_that_f16_cannot_hold(self, tmp_path: Path) -> None:
        layout = learn_map(*compiled(self.forms()), self.weights)
        huge = {"w": self.weights[0], "norm": WeightForms("norm", numbers(128) * np.float32(1e6), INT8)}
        with np.errstate(over="ignore"), pytest.raises(CompileError, match="F16 cannot hold"):
            write_coefficients(layout, huge, tmp_path / "w.bin")

    def test_the_map_survives_a_file(self) -> None:
        layout = learn_map(*compiled(self.forms()), self.weights)
        assert CoefficientMap.model_validate_json(layout.model_dump_json()) == layout
        assert layout.weights == {"w", "norm"}


def test_four_bits_take_half_the_room() -> None:
    scheme: QuantScheme = resolve_quant(QuantMode.INT4, DType.BF16)
    parts = {form: sum(p.size for p in WeightForms("w", numbers(128, 192), scheme).parts(form)) for form in Form}
    assert parts[Form.VALUES] == 128 * 192 // 2
    assert parts[Form.SCALES] == 2 * parts[Form.ZERO_POINTS] == 2 * 192 * 2
