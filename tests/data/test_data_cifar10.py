"""CIFAR-10's archive: its layout, and pickles with code."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fastgan._util.plain_pickle import Record
from fastgan.data import load_data
from fastgan.data.cifar10 import _byte_array
from fastgan.data.cifar10 import _load as load
from fastgan.errors import DataError

FOLDER = "cifar-10-batches-py"
NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer"]
NAMES += [b"dog", b"frog", b"horse", b"ship", b"truck"]


def random_batch(seed: int, count: int = 6):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 3072), dtype=np.uint8), random.integers(0, 10, count)


def python2_text(text: bytes) -> bytes:
    """A Python 2 str as its pickles have it."""
    if len(text) < 256:
        return b"U" + bytes([len(text)]) + text
    return b"T" + struct.pack("<i", len(text)) + text


def python2_batch(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """Write a batch opcode by opcode, as Python 2 and numpy 1 did in protocol 2."""
    rows, columns = pixels.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
        b"(K\x01"
        + b"J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", columns) + b"\x86"
        + b"cnumpy\ndtype\nq\x03U\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89" + python2_text(pixels.tobytes()) + b"tb"
    )  # fmt: skip
    numbers = b"".join(b"K" + bytes([label]) for label in labels.tolist())
    names = b"".join(python2_text(b"x_%d.png" % row) for row in range(rows))
    return (
        b"\x80\x02}q\x00("
        + python2_text(b"data") + array
        + python2_text(b"labels") + b"](" + numbers + b"e"
        + python2_text(b"batch_label") + python2_text(b"training batch 1 of 5")
        + python2_text(b"filenames") + b"](" + names + b"e"
        + b"u."
    )  # fmt: skip


def python3_batch(pixels, labels, protocol: int = 2, keys: type = bytes) -> bytes:
    entries = {"data": pixels, "labels": labels.tolist(), "filenames": [b"a"] * len(pixels)}
    if keys is bytes:
        return pickle.dumps({k.encode(): v for k, v in entries.items()}, protocol=protocol)
    return pickle.dumps(entries, protocol=protocol)


def write_folder(folder: Path, batches: int = 5) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True)
    parts = [random_batch(number) for number in range(1, batches + 1)]
    for number, part in enumerate(parts, start=1):
        (folder / f"data_batch_{number}").write_bytes(python2_batch(*part))
    (folder / "test_batch").write_bytes(python2_batch(*random_batch(99)))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": NAMES}, protocol=2))
    (folder / "readme.html").write_text("hello")
    return np.concatenate([p for p, _ in parts]), np.concatenate([part[1] for part in parts])


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname=FOLDER)
    return archive


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_data(f"cifar10:{path}", image_size=32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("place", ["folder", "parent", "archive", "folder of the archive"])
def test_training_batches_arrive_in_order(tmp_path, place):
    folder = tmp_path / "unpacked" / FOLDER
    pixels, labels = write_folder(folder)
    (tmp_path / "packed").mkdir()
    archive = pack(folder, tmp_path / "packed" / "cifar-10-python.tar.gz")
    path = {
        "folder": folder,
        "parent": folder.parent,
        "archive": archive,
        "folder of the archive": archive.parent,
    }[place]
    source = load_data(f"cifar10:{path}", image_size=32)
    assert (len(source), source.channels, source.num_classes) == (30, 3, 10)
    assert source.class_names == [name.decode() for name in NAMES]
    expected = (pixels.reshape(-1, 3, 32, 32) / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(source.images.numpy(), expected)
    np.testing.assert_array_equal(source.labels.numpy(), labels)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("keys", [bytes, str])
def test_batches_written_by_python_3_are_read(tmp_path, protocol, keys):
    pixels, labels = random_batch(protocol)
    (tmp_path / "data_batch_1").write_bytes(python3_batch(pixels, labels, protocol, keys))
    source = load_data(f"cifar10:{tmp_path}", image_size=32)
    expected = (pixels.reshape(-1, 3, 32, 32) / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(source.images.numpy(), expected)
    assert source.class_names == [name.decode() for name in NAMES]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_array_records_become_the_arrays_that_were_pickled(protocol, order):
    array = np.asarray(random_batch(protocol)[0], order=order)
    record = load(pickle.dumps(array, protocol=protocol), "test")
    assert isinstance(record, Record)
    np.testing.assert_array_equal(_byte_array(record, "test"), array)


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("hidden", ["system", "eval", "open", "getattr", "bytearray", "import"])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path, protocol, hidden):
    trace = tmp_path / "trace"
    call = {
        "system": Calls(os.system, f"touch {trace}"),
        "eval": Calls(eval, f"open({str(trace)!r}, 'w')"),
        "open": Calls(open, str(trace), "w"),
        "getattr": Calls(getattr, "text", "upper"),
        "bytearray": Calls(bytearray, 10),
        "import": Calls(__import__, "os"),
    }[hidden]
    pixels, labels = random_batch(0)
    batch = {b"data": pixels, b"labels": labels.tolist(), b"extra": call}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=protocol))
    message = refusal(tmp_path)
    assert "is code, not data" in message
    assert "data_batch_1" in message
    assert not trace.exists()


def test_code_in_the_class_names_or_in_an_archive_is_refused(tmp_path):
    folder = tmp_path / FOLDER
    write_folder(folder, batches=1)
    trace = tmp_path / "trace"
    evil = pickle.dumps({b"label_names": Calls(os.system, f"touch {trace}")}, protocol=2)
    (folder / "batches.meta").write_bytes(evil)
    assert "batches.meta" in refusal(folder)
    assert "batches.meta" in refusal(pack(folder, tmp_path / "a.tar.gz"))
    assert not trace.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n(U\x04truetR.",
        b"(U\x04trueios\nsystem\n.",
        b"(cos\nsystem\nU\x04trueo.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",
        b"cnumpy.core.multiarray\nscalar\n(tR.",
        b"cnumpy\nload\n(U\x04filetR.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aU\x03rottR.",
        b"c_codecs\ndecode\n(U\x01atR.",
        b"c__builtin__\neval\n(U\x011tR.",
        # Setting attributes of what a name resolves to.
        b"c_codecs\nencode\n}U\x08__call__K\x01sb.",
        b"cnumpy\nndarray\nN}U\x08__call__K\x01s\x86b.",
        b"c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR.",
        # References to outside the file, and the extension registry.
        b"Poutside\n.",
        b"U\x07outsideQ.",
        b"\x82\x01.",
        # Nothing, and halves of things.
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x63.",
        b"garbage",
        b"\x80\x02}(U\x04data",
        b"T\xff\xff\xff\x7fabc.",
    ],
)
def test_hostile_opcodes_are_refused(opcodes):
    with pytest.raises(DataError, match="pickle") as caught:
        load(opcodes, "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opcodes", [b"Nr\xff\xff\xff\xff.", b"Np4000000000\n."])
def test_memo_numbers_that_would_allocate_gigabytes_cost_nothing(opcodes):
    assert load(opcodes, "test") is None


def test_stand_ins_keep_working_after_an_attack():
    array = random_batch(0)[0]
    test_hostile_opcodes_are_refused(b"c_codecs\nencode\n}U\x08__call__K\x01sb.")
    record = load(pickle.dumps(array, protocol=2), "test")
    np.testing.assert_array_equal(_byte_array(record, "test"), array)


def test_every_truncation_of_a_batch_is_found():
    pixels, labels = random_batch(0, count=1)
    for content in (python2_batch(pixels, labels), python3_batch(pixels, labels, 4)):
        for kept in {
            *range(0, len(content), 97),
            *range(60),
            *range(len(content) - 60, len(content)),
        }:
            with pytest.raises(DataError, match="test: "):
                load(content[:kept], "test")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3072), np.float32),
        np.zeros((2, 3072), np.int8),
        np.zeros((2, 3072), np.uint16),
        np.array([["a", {}]], dtype=object),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_other_kinds_are_refused(array, protocol):
    record = load(pickle.dumps(array, protocol=protocol), "test")
    with pytest.raises(DataError, match=r"expected u1|expected an array"):
        _byte_array(record, "test")


@pytest.mark.parametrize(
    "shape", [(3, 3072), (-1, 3072), (2**62, 2**62), (1, 2.0), [1], ("a",), None]
)
def test_shapes_that_dont_match_the_bytes_are_refused(shape):
    record = load(pickle.dumps(np.zeros((2, 3072), np.uint8), protocol=2), "test")
    version, _, *rest = record.state
    record.state = (version, shape, *rest)
    with pytest.raises(DataError, match="don't match"):
        _byte_array(record, "test")


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([1, 2], "list found; expected a dictionary"),
        ({b"labels": [1]}, "no 'data'"),
        ({b"data": np.zeros((1, 3072), np.uint8)}, "no 'labels'"),
        ({b"data": b"bytes", b"labels": [1]}, "expected an array"),
        ({b"data": np.zeros((1, 1024), np.uint8), b"labels": [1]}, "expected (n, 3072)"),
        ({b"data": np.zeros((1, 2, 1536), np.uint8), b"labels": [1]}, "expected (n, 3072)"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1, 2]}, "2 labels for 1 images"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, "expected 0 to 9"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]}, "expected 0 to 9"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["1"]}, "whole numbers"),
        ({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}, "holds no images"),
    ],
)
def test_batches_of_another_make_are_refused(tmp_path, batch, said):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    message = refusal(tmp_path)
    assert said in message
    assert str(tmp_path) in message


def test_missing_batches_are_named(tmp_path):
    assert "no CIFAR-10 batches" in refusal(tmp_path)
    write_folder(tmp_path / FOLDER)
    (tmp_path / FOLDER / "data_batch_2").unlink()
    assert "data_batch_2 is missing" in refusal(tmp_path)


def test_broken_archives_are_named(tmp_path):
    write_folder(tmp_path / FOLDER, batches=1)
    content = pack(tmp_path / FOLDER, tmp_path / "whole.tar.gz").read_bytes()
    path = tmp_path / "broken.tar.gz"
    for kept in [0, 5, 200, len(content) // 2, len(content) - 20, len(content) - 4]:
        path.write_bytes(content[:kept])
        assert "broken.tar.gz" in refusal(path)
    path.write_bytes(b"not an archive at all")
    assert "broken.tar.gz" in refusal(path)
    path.write_bytes(gzip.compress(b"not a tar" * 500))
    assert "broken.tar.gz" in refusal(path)


def test_archive_members_never_reach_the_disk(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    batch = python2_batch(*random_batch(0))
    with tarfile.open(inside / "a.tar.gz", "w:gz") as archive:
        for name in ("../escaped", "/tmp/../escaped", "../../data_batch_1"):
            member = tarfile.TarInfo(name)
            member.size = len(batch)
            archive.addfile(member, io.BytesIO(batch))
        link = tarfile.TarInfo("data_batch_2")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    # The batch is read for what it is, the link is not followed.
    assert len(load_data(f"cifar10:{inside / 'a.tar.gz'}", image_size=32)) == 6
    assert sorted(tmp_path.rglob("*")) == before


def test_members_that_are_too_large_or_double_are_refused(tmp_path):
    batch = python2_batch(*random_batch(0))
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for _ in range(2):
            member = tarfile.TarInfo(f"{FOLDER}/data_batch_1")
            member.size = len(batch)
            archive.addfile(member, io.BytesIO(batch))
    assert "occurs twice" in refusal(path)
    member = tarfile.TarInfo(f"{FOLDER}/data_batch_1")
    member.size = 2**40
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)))
    assert f"{2**40} bytes" in refusal(path)


def test_archives_that_unpack_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fastgan.data.cifar10._MAX_ARCHIVE_BYTES", 2**20)
    member = tarfile.TarInfo("filler")
    member.size = 2**22
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(2**22)))
    assert f"over {2**20} bytes" in refusal(path)
