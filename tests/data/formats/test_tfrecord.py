import random
import struct

import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.data.formats.rlds import tfrecord


def write(path, payloads):
    return tfrecord.write(path, payloads), path.read_bytes()


def test_checksums_are_those_of_the_standard():
    # 123456789 -> E3069283 is the check value of CRC-32C; its mask by hand: rotate right by 15, add a282ead8
    assert tfrecord.checksum(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
    # the header of an empty record as TensorFlow writes it
    assert tfrecord.frame(b"") == bytes(8) + bytes.fromhex("29039807") + bytes.fromhex("d8ea82a2")


@settings(max_examples=50, deadline=None)
@given(payloads=st.lists(st.binary(max_size=200), max_size=6))
def test_records_come_back(tmp_path_factory, payloads):
    path = tmp_path_factory.mktemp("records") / "x.tfrecord"
    written, data = write(path, payloads)
    assert tfrecord.index(path) == written
    assert [tfrecord.read(path, *record) for record in written] == payloads
    assert list(grain.experimental.TFRecordIterDataset(str(path))) == payloads, "an independent reader agrees"
    assert len(data) == sum(map(len, payloads)) + 16 * len(payloads)


def test_real_records_as_another_reader_sees_them(shared):
    path = next((shared / "data/bridge_debug").rglob("*train.tfrecord*"))
    records = tfrecord.index(path)
    assert len(records) == 25
    theirs = list(grain.experimental.TFRecordIterDataset(str(path)))
    assert [tfrecord.read(path, *record) for record in records] == theirs


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "x.tfrecord"
    records, whole = write(path, [b"the first", b"", b"\0" * 20, bytes(range(50))])
    rng = random.Random(0)
    for place in range(len(whole)):
        record = max(r.offset for r in records if r.offset <= place)
        for flip in {0x01, 0x80, 0xFF, rng.randrange(1, 256)}:
            damaged = bytearray(whole)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"byte {record}\b|compressed"):
                for entry in tfrecord.index(path):
                    tfrecord.read(path, *entry)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "x.tfrecord"
    records, whole = write(path, [b"abc", b"defg", b"h"])
    borders = {0, *(r.offset for r in records)}
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size in borders:  # a file that ends between two records is whole, as far as the format can tell
            assert tfrecord.index(path) == [r for r in records if r.offset < size]
        else:
            with pytest.raises(ValueError, match="truncated"):
                tfrecord.index(path)
        with pytest.raises(ValueError, match="truncated|byte"):
            tfrecord.read(path, *records[-1])


def test_a_record_that_changed_since_it_was_indexed(tmp_path):
    path = tmp_path / "x.tfrecord"
    (record,), _ = write(path, [b"abc"])
    write(path, [b"abcd"])
    with pytest.raises(ValueError, match="byte 0 has another length"):
        tfrecord.read(path, *record)


@pytest.mark.parametrize(
    "start, message",
    [(b"\x1f\x8b\x08", "gzip-compressed"), (b"\x28\xb5\x2f\xfd", "zstandard"), (b"\x78\x9c", "zlib"), (b"{", "byte 0")],
)
def test_other_files(tmp_path, start, message):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(start + bytes(40))
    with pytest.raises(ValueError, match=message):
        tfrecord.index(path)


def test_a_length_that_no_file_has(tmp_path):
    path = tmp_path / "x.tfrecord"
    length = struct.pack("<Q", 2**62)
    path.write_bytes(length + struct.pack("<I", tfrecord.checksum(length)) + bytes(100))
    with pytest.raises(ValueError, match="record 0 at byte 0 needs .* bytes, 112 are there"):
        tfrecord.index(path)
    with pytest.raises(ValueError, match="another length"):
        tfrecord.read(path, 0, 5)


def test_writing_is_atomic(tmp_path):
    path = tmp_path / "x.tfrecord"
    _, whole = write(path, [b"old"])

    def payloads():
        yield b"new"
        raise OSError("disk full")

    with pytest.raises(OSError):
        tfrecord.write(path, payloads())
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
