"""Frames on a pipe: what is written is read, whatever else arrives is refused, and nobody has to wait for the other side."""

import io
import json
import math
import os
import struct
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfx_local_runtimes.runtimes.processes.frames import (
    MAX_COUNT,
    MAX_HEADER,
    Frame,
    FrameReader,
    FrameWriter,
    Outbox,
    ProtocolError,
    Truncated,
    encode,
)

DEADLINE_S = 30
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
HEADERS = st.dictionaries(st.text(), JSON, max_size=5)
FRAMES = st.builds(Frame, HEADERS, st.lists(st.binary(max_size=300), max_size=4).map(tuple))


def written(*frames: Frame) -> bytes:
    return b"".join(bytes(piece) for frame in frames for piece in encode(frame))


def read_all(data: bytes, **limits: int) -> list[Frame]:
    reader, found = FrameReader(io.BytesIO(data), **limits), []
    while (frame := reader.read()) is not None:
        found.append(frame)
    return found


class Dribble(io.BytesIO):
    """A pipe from which only a few bytes come at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 3))

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return super().readinto(buffer[:3])


class Sink(io.BytesIO):
    """A pipe that takes a few bytes at a time."""

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        return super().write(data[:7])


# -- round trip ------------------------------------------------------------------------------------------------------


@given(st.lists(FRAMES, max_size=5))
def test_what_is_written_is_read(frames: list[Frame]) -> None:
    assert read_all(written(*frames)) == frames


@given(FRAMES)
def test_it_does_not_matter_in_which_pieces_the_bytes_travel(frame: Frame) -> None:
    sink = Sink()
    FrameWriter(sink).write(frame)
    reader = FrameReader(Dribble(sink.getvalue()))
    assert reader.read() == frame
    assert reader.read() is None


@pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 2**20, 2**20 + 1, 3 * 2**20 + 5])
def test_attachments_of_every_size_arrive_and_so_does_what_follows(size: int) -> None:
    data = os.urandom(size)
    first, second = read_all(written(Frame({"n": 1}, (data, b"x", memoryview(data))), Frame({"n": 2})))
    assert [bytes(one) for one in first.attachments] == [data, b"x", data]
    assert second == Frame({"n": 2})


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
def test_views_of_arrays_are_sent_as_their_bytes(shape: tuple[int, int]) -> None:
    import numpy as np

    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    (frame,) = read_all(written(Frame({}, (memoryview(array),))))
    assert np.array_equal(np.frombuffer(frame.attachments[0], np.float32).reshape(shape), array)


def test_numbers_and_characters_that_json_lacks_arrive() -> None:
    header = {"inf": math.inf, "least": -math.inf, "half": "\ud800", "many": 10**30, "line": "\u2028"}
    assert read_all(written(Frame(header)))[0].header == header
    (frame,) = read_all(written(Frame({"nan": math.nan})))
    assert math.isnan(frame.header["nan"])


def test_what_is_not_json_cannot_be_sent() -> None:
    with pytest.raises(TypeError):
        encode(Frame({"x": object()}))


# -- hostile and broken bytes ----------------------------------------------------------------------------------------


def test_the_end_is_told_from_a_cut_at_every_byte() -> None:
    data = written(Frame({"a": "b"}, (b"12345", b"", b"6")))
    for length in range(1, len(data)):
        with pytest.raises(Truncated):
            read_all(data[:length])
    assert read_all(b"") == []


@given(FRAMES, st.data())
def test_a_cut_frame_after_a_whole_one_is_an_error(frame: Frame, data: st.DataObject) -> None:
    whole = written(frame)
    cut = data.draw(st.integers(1, len(whole) - 1))
    reader = FrameReader(io.BytesIO(whole + whole[:cut]))
    assert reader.read() == frame
    with pytest.raises(Truncated):
        reader.read()


@settings(max_examples=500)
@given(st.binary(max_size=64))
def test_any_bytes_are_frames_or_an_error(data: bytes) -> None:
    try:
        frames = read_all(data)
    except ProtocolError:
        return
    assert all(isinstance(frame.header, dict) for frame in frames)


@settings(max_examples=300)
@given(FRAMES, st.data())
def test_any_changed_byte_gives_frames_or_an_error(frame: Frame, data: st.DataObject) -> None:
    whole = bytearray(written(frame))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        frames = read_all(bytes(whole))
    except ProtocolError:
        return
    assert all(isinstance(one.header, dict) for one in frames)


def prefix(header: int = 2, count: int = 0, magic: bytes = b"\xf5L") -> bytes:
    return struct.pack(">2sHI", magic, count, header)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (prefix(MAX_HEADER + 1), "limit"),
        (prefix(2**32 - 1), "limit"),
        (prefix(2, MAX_COUNT + 1), "attachments"),
        (prefix(2, 1) + struct.pack(">Q", 2**64 - 1) + b"{}", "limit"),
        (prefix(2, 2) + struct.pack(">QQ", 2**29, 2**29 + 1) + b"{}", "limit"),
        (prefix(2, magic=b"\xf5M") + b"{}", "starts with"),
        (b"Loading the model\n", "starts with"),
        ("größe ✓ größe".encode(), "starts with"),
        (prefix(0), "not JSON"),
        (prefix(2) + b"[]", "not a JSON object"),
        (prefix(4) + b"null", "not a JSON object"),
        (prefix(2) + b"{]", "not JSON"),
        (prefix(3) + b'{"\xff', "not JSON"),
        (prefix(200_000) + b"[" * 200_000, "not JSON"),
        (prefix(5006) + b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        read_all(data)


@pytest.mark.parametrize(
    "claim",
    [prefix(MAX_HEADER) + b'{"a', prefix(2, 1) + struct.pack(">Q", 2**30) + b"{}abc"],
    ids=["header", "attachment"],
)
def test_a_length_alone_takes_no_memory(claim: bytes) -> None:
    reader = FrameReader(io.BytesIO(claim))
    tracemalloc.start()
    try:
        with pytest.raises(Truncated):
            reader.read()
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "frame", [Frame({"a": "x" * 100}), Frame({}, (b"x" * 60, b"y" * 60))], ids=["header", "attachments"]
)
def test_both_sides_keep_to_limits_of_their_own(frame: Frame) -> None:
    sink = io.BytesIO()
    with pytest.raises(ProtocolError, match="limit is 99"):
        FrameWriter(sink, max_header=99, max_attachments=99).write(frame)
    assert sink.getvalue() == b""
    with pytest.raises(ProtocolError, match="limit is 99"):
        read_all(written(frame), max_header=99, max_attachments=99)


def test_a_frame_has_only_so_many_attachments() -> None:
    with pytest.raises(ProtocolError, match="attachments"):
        encode(Frame({}, (b"",) * (MAX_COUNT + 1)))
    assert len(read_all(written(Frame({}, (b"",) * MAX_COUNT)))[0].attachments) == MAX_COUNT


# -- many threads ----------------------------------------------------------------------------------------------------


class Pipe:
    def __init__(self) -> None:
        read, write = os.pipe()
        self.incoming = os.fdopen(read, "rb", buffering=0)
        self.outgoing = os.fdopen(write, "wb", buffering=0)
        self.reader = FrameReader(self.incoming)  # type: ignore[arg-type]
        self.writer = FrameWriter(self.outgoing)  # type: ignore[arg-type]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    assert pipe.writer.close()
    assert pipe.reader.close()


@pytest.mark.parametrize("through_outbox", [False, True])
def test_many_threads_write_whole_frames_in_their_order(pipe: Pipe, through_outbox: bool) -> None:
    outbox = Outbox(pipe.writer, max_waiting=100_000)
    send = outbox.put if through_outbox else pipe.writer.write
    threads, each = 8, 200

    def write(number: int) -> None:
        for index in range(each):
            size = (index % 7) * 1000 if index % 50 else 2 * 2**20  # also larger than the pipe, and than a write
            send(Frame({"thread": number, "index": index}, (bytes([number]) * size,)))

    running = [threading.Thread(target=write, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    seen: dict[int, list[int]] = {number: [] for number in range(threads)}
    for _ in range(threads * each):
        frame = pipe.reader.read()
        assert frame is not None
        number = frame.header["thread"]
        seen[number].append(frame.header["index"])
        assert set(bytes(frame.attachments[0])) <= {number}
    for thread in running:
        thread.join(DEADLINE_S)
    assert outbox.close()
    assert seen == {number: list(range(each)) for number in range(threads)}


class Gate:
    """A pipe that takes nothing before it is opened, and notes each write."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.writes: list[bytes] = []
        self._ends = [os.fdopen(end, mode, buffering=0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)]
        os.set_blocking(self.fileno(), False)
        while self._ends[1].write(b"x" * 4096):  # then the system says that it has no room
            pass

    def write(self, data: bytes | memoryview) -> int:
        self.entered.set()
        assert self.open.wait(DEADLINE_S)
        self.writes.append(bytes(data))
        return len(data)

    def fileno(self) -> int:
        return self._ends[1].fileno()

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.close()


def test_a_small_frame_is_written_at_once_by_whoever_puts_it(pipe: Pipe) -> None:
    outbox = Outbox(pipe.writer)
    outbox._queue = None  # type: ignore[assignment]  # nothing goes through the thread
    outbox.put(Frame({"n": 1}))
    outbox.put(Frame({"n": 2}))
    assert outbox.waiting == 0
    assert [pipe.reader.read(), pipe.reader.read()] == [Frame({"n": 1}), Frame({"n": 2})]


def test_a_full_pipe_does_not_hold_up_whoever_puts_a_small_frame(pipe: Pipe) -> None:
    outbox = Outbox(pipe.writer)
    frames = [Frame({"n": number}, (b"x" * 1000,)) for number in range(2000)]  # more than any pipe holds
    for frame in frames:
        outbox.put(frame)
    assert outbox.waiting
    assert [pipe.reader.read() for _ in frames] == frames
    assert outbox.close(DEADLINE_S)


def test_frames_that_wait_travel_together_and_put_does_not_wait(gate: Gate) -> None:
    outbox = Outbox(FrameWriter(gate))
    frames = [Frame({"n": number}) for number in range(100)]
    outbox.put(frames[0])
    assert gate.entered.wait(DEADLINE_S)
    for frame in frames[1:]:
        outbox.put(frame)  # the pipe is stuck: this would never return if it waited for it
    assert outbox.waiting == len(written(*frames))
    gate.open.set()
    assert outbox.close(DEADLINE_S)
    assert gate.writes == [written(frames[0]), written(*frames[1:])]
    assert outbox.waiting == 0


def test_past_its_bound_the_outbox_makes_the_writer_wait(gate: Gate) -> None:
    outbox = Outbox(FrameWriter(gate), max_waiting=1000)
    outbox.put(Frame({}, (b"x" * 5000,)))  # alone, a larger one is taken
    assert gate.entered.wait(DEADLINE_S)
    taken = threading.Event()
    thread = threading.Thread(target=lambda: (outbox.put(Frame({"late": True})), taken.set()))
    thread.start()
    assert not taken.wait(0.05)
    gate.open.set()
    assert taken.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert outbox.close(DEADLINE_S)
    assert [frame.header for frame in read_all(b"".join(gate.writes))] == [{}, {"late": True}]


def test_whoever_waits_for_room_hears_of_a_reader_that_left(pipe: Pipe) -> None:
    outbox = Outbox(pipe.writer, max_waiting=1000)
    outbox.put(Frame({}, (b"x" * 10 * 2**20,)))  # fills the pipe
    raised = threading.Event()

    def put() -> None:
        with pytest.raises(BrokenPipeError):
            outbox.put(Frame({}, (b"x" * 1000,)))
        raised.set()

    thread = threading.Thread(target=put)
    thread.start()
    pipe.incoming.close()
    assert raised.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    with pytest.raises(BrokenPipeError):
        outbox.put(Frame({}))
    assert not outbox.flush(DEADLINE_S)
    outbox.close()


def test_a_closed_outbox_takes_nothing(pipe: Pipe) -> None:
    outbox = Outbox(pipe.writer)
    outbox.put(Frame({"last": 1}))
    assert outbox.close(DEADLINE_S)
    assert outbox.close(DEADLINE_S)
    with pytest.raises(BrokenPipeError):
        outbox.put(Frame({}))
    assert pipe.reader.read() == Frame({"last": 1})


def test_closing_does_not_wait_for_a_stuck_pipe(pipe: Pipe) -> None:
    outbox = Outbox(pipe.writer)
    outbox.put(Frame({}, (b"x" * 10 * 2**20,)))
    assert not outbox.close(0.01)
    assert not pipe.writer.close(0.01), "a thread still writes"
    frame = pipe.reader.read()
    assert frame is not None
    assert len(frame.attachments[0]) == 10 * 2**20


def test_a_large_header_is_json_as_others_write_it() -> None:
    header = {"texts": ["ä" * 1000] * 200}
    data = json.dumps(header).encode()
    assert read_all(prefix(len(data)) + data)[0].header == header
