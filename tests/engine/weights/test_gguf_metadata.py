from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.engine.errors import WeightError
from quire.engine.weights.gguf_metadata import read_header, read_metadata


def write(path: Path, alignment: int = 32) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_string("text", "é 漢")
    writer.add_bool("yes", True)
    writer.add_uint64("large", 2**63)
    writer.add_int8("negative", -3)
    writer.add_float64("real", 0.1)
    writer.add_array("strings", ["", "a", "ü" * 300])
    writer.add_array("floats", [0.5, -1.5])
    writer.add_array("bools", [True, False])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_tensor("a.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("b.weight", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def test_every_type_of_value_is_read(tmp_path: Path) -> None:
    metadata = read_metadata(write(tmp_path / "m.gguf"))
    assert metadata["text"] == "é 漢"
    assert (metadata["yes"], metadata["large"], metadata["negative"], metadata["real"]) == (True, 2**63, -3, 0.1)
    assert metadata["strings"] == ["", "a", "ü" * 300]
    assert (metadata["floats"], metadata["bools"], metadata["nested"]) == ([0.5, -1.5], [True, False], [[1, 2], [3]])


@pytest.mark.parametrize("alignment", [32, 256])
def test_tensors_lie_where_they_were_written(tmp_path: Path, alignment: int) -> None:
    path = write(tmp_path / "m.gguf", alignment)
    tensors = read_header(path).tensors
    data = path.read_bytes()
    a, b = tensors["a.weight"], tensors["b.weight"]
    assert (a.shape, b.shape) == ((2, 3), (5,))
    assert np.frombuffer(data, np.float32, 6, a.offset).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.frombuffer(data, np.float16, 5, b.offset).tolist() == [0, 1, 2, 3, 4]


def test_a_real_file_reads_as_the_reference_reader_reads_it(smollm2_path: Path) -> None:
    header, reference = read_header(smollm2_path), GGUFReader(smollm2_path)
    stated = {name: f.contents() for name, f in reference.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == stated
    assert [(t.name, t.offset, t.type_id, list(t.shape)) for t in header.tensors.values()] == [
        (t.name, t.data_offset, int(t.tensor_type), t.shape.tolist()[::-1]) for t in reference.tensors]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all", b"GGUF\x01\0\0\0" + b"\0" * 16])
def test_other_files_are_errors_that_name_them(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightError, match=r"other\.gguf"):
        read_metadata(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=r"gone\.gguf"):
        read_metadata(tmp_path / "gone.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 700))
def test_a_file_cut_short_is_an_error(tmp_path: Path, small: bytes, cut: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(small[:cut])
    with pytest.raises(WeightError, match=r"cut\.gguf"):
        read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(place=st.integers(4, 1400), value=st.binary(min_size=1, max_size=8))
def test_a_malformed_file_never_raises_anything_else(tmp_path: Path, small: bytes, place: int, value: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes((small[:place] + value + small[place + len(value):])[:len(small)])
    with suppress(WeightError):
        read_header(path)


@pytest.mark.parametrize(("place", "value", "message"), [
    (0, b"\0\0\0\0", "has 0 dimensions"),
    (4, (2**60).to_bytes(8, "little"), "has the shape .* bytes from its beginning on; it is cut short"),
])
def test_a_tensor_that_the_file_has_no_room_for_is_an_error_before_memory_is_taken(tmp_path: Path, place: int,
                                                                                   value: bytes, message: str) -> None:
    data = bytearray(write(tmp_path / "m.gguf").read_bytes())
    place += data.index(b"a.weight") + len("a.weight")
    data[place:place + len(value)] = value
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(WeightError, match=rf"m\.gguf: tensor 'a\.weight' {message}"):
        read_header(tmp_path / "m.gguf")
