"""Frames on a pipe: a JSON header with raw attachments, never pickle.

A frame is, in this order:

- a prefix of 8 bytes: two fixed bytes, the number of attachments, the length of the header;
- 8 bytes for each attachment: its length;
- the header, a JSON object;
- the attachments, as they are (vectors, audio, images).

The first fixed byte occurs in no UTF-8 text. So text that got into the pipe is noticed at once.

The reader trusts nothing: every length is checked against a limit first, and memory grows only as bytes arrive.
"""

import json
import select
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from pydantic_core import from_json, to_json

MAX_HEADER = 64 * 2**20
MAX_ATTACHMENTS = 2**30
"""Bytes, all attachments of a frame together."""
MAX_COUNT = 4096
"""Attachments of one frame."""
MAX_WAITING = 64 * 2**20
"""Bytes that may wait in an `Outbox`."""

_MAGIC = b"\xf5L"
_PREFIX = struct.Struct(">2sHI")
_LENGTH_BYTES = 8
_BUFFER = 64 * 2**10
_PIECE = 2**20
"""The most that is read, or joined for one write, at once."""

_ATOMIC = getattr(select, "PIPE_BUF", 0)
"""Bytes that a pipe with any room takes at once; 0 where the system cannot say whether there is room."""

Attachment = bytes | memoryview


class RawReader(Protocol):
    """An unbuffered file to read from: each call returns what is there, at most what was asked for."""

    def read(self, size: int, /) -> bytes: ...

    def readinto(self, buffer: memoryview, /) -> int: ...

    def close(self) -> None: ...


class RawWriter(Protocol):
    """An unbuffered file to write to. A write may take only a part."""

    def write(self, data: Attachment, /) -> int: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class ProtocolError(Exception):
    """The bytes on the pipe are not a frame within the limits."""


class Truncated(ProtocolError):
    """The pipe ended inside a frame."""


@dataclass(frozen=True)
class Frame:
    """One message.

    Args:
        header: what JSON can hold. Keys are strings.
        attachments: raw bytes. They must not change before the frame is written.
    """

    header: dict[str, Any]
    attachments: tuple[Attachment, ...] = ()


def encode(frame: Frame, max_header: int = MAX_HEADER, max_attachments: int = MAX_ATTACHMENTS) -> list[Attachment]:
    """The pieces to write. Attachments are not copied.

    Raises:
        ProtocolError: the frame is over a limit.
        TypeError: the header holds something that is not JSON.
    """
    header = _to_json(frame.header)
    attachments = [_flat(one) for one in frame.attachments]
    _check(len(header), len(attachments), sum(map(len, attachments)), max_header, max_attachments)
    lengths = b"".join(len(one).to_bytes(_LENGTH_BYTES, "big") for one in attachments)
    return [_PREFIX.pack(_MAGIC, len(attachments), len(header)) + lengths + header, *attachments]


def _flat(attachment: Attachment) -> Attachment:
    """As single bytes: a view of an array may have another form."""
    if isinstance(attachment, bytes):
        return attachment
    return attachment.cast("B") if attachment.nbytes else b""  # Python refuses to cast an empty view


def _check(header: int, count: int, attachments: int, max_header: int, max_attachments: int) -> None:
    if header > max_header:
        raise ProtocolError(f"The header has {header:,} bytes. The limit is {max_header:,}.")
    if count > MAX_COUNT:
        raise ProtocolError(f"The frame has {count:,} attachments. The limit is {MAX_COUNT:,}.")
    if attachments > max_attachments:
        raise ProtocolError(f"The attachments have {attachments:,} bytes. The limit is {max_attachments:,}.")


def _to_json(header: dict[str, Any]) -> bytes:
    try:
        return to_json(header, inf_nan_mode="constants")
    except ValueError:  # half of a surrogate pair, or very deep: the standard library can write both
        return json.dumps(header).encode()


def _from_json(data: bytes) -> dict[str, Any]:
    try:
        try:
            header = from_json(data)
        except ValueError:  # the same
            header = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"The header is not JSON: {error}.") from error
    if not isinstance(header, dict):
        raise ProtocolError("The header is not a JSON object.")
    return header


class FrameReader:
    """Reads frames. One thread reads at a time.

    It has a buffer of its own: one call to the system reads all small frames that are there.

    Args:
        file: where the frames come from.
        max_header: the longest header, in bytes.
        max_attachments: bytes of all attachments of a frame together.
    """

    def __init__(self, file: RawReader, max_header: int = MAX_HEADER, max_attachments: int = MAX_ATTACHMENTS) -> None:
        self._file = file
        self._max_header = max_header
        self._max_attachments = max_attachments
        self._buffer = b""
        self._at = 0
        self._lock = threading.Lock()

    def read(self) -> Frame | None:
        """The next frame. None: the other side ended its sending, after a whole frame.

        Raises:
            ProtocolError: the bytes are not a frame within the limits. Nothing after them can be read.
            OSError: the file cannot be read.
            ValueError: this side has closed the file.
        """
        with self._lock:
            if self._at == len(self._buffer):
                self._buffer, self._at = self._file.read(_BUFFER), 0
                if not self._buffer:
                    return None
            magic, count, header_size = _PREFIX.unpack(self._take(_PREFIX.size))
            if magic != _MAGIC:
                raise ProtocolError(f"No frame starts with {magic!r}.")
            _check(header_size, count, 0, self._max_header, self._max_attachments)
            sizes = struct.unpack(f">{count}Q", self._take(count * _LENGTH_BYTES)) if count else ()
            _check(header_size, count, sum(sizes), self._max_header, self._max_attachments)
            header = _from_json(bytes(self._take(header_size)))
            return Frame(header, tuple(self._take(size) for size in sizes))

    def _take(self, size: int) -> Attachment:
        """The next bytes of the pipe. A length is only a claim: memory is taken as the bytes arrive."""
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            return data
        grown = bytearray(memoryview(self._buffer)[self._at :])
        self._buffer, self._at = b"", 0
        while (left := size - len(grown)) >= _BUFFER:
            self._extend(grown, min(left, _PIECE), size)
        while left > 0:  # what comes after belongs to the next frame
            piece = self._file.read(_BUFFER)
            if not piece:
                raise _truncated(size, len(grown))
            self._buffer, self._at = piece, min(left, len(piece))
            grown += piece[:left]
            left = size - len(grown)
        return bytes(grown) if size <= _PIECE else memoryview(grown).toreadonly()

    def _extend(self, grown: bytearray, more: int, size: int) -> None:
        start, end = len(grown), len(grown) + more
        grown += bytes(more)
        with memoryview(grown) as view:
            while start < end:
                got = self._file.readinto(view[start:end])
                if not got:
                    raise _truncated(size, start)
                start += got

    def close(self, wait_s: float = 1.0) -> bool:
        """Close the file. False: another thread still reads, so the file stays open."""
        return _close(self._file, self._lock, wait_s)

    def abandon(self) -> None:
        """In a forked process: close this copy of the file. The thread that read is not in this process."""
        self._lock = threading.Lock()
        self.close()


def _truncated(wanted: int, got: int) -> Truncated:
    return Truncated(f"The pipe ended inside a frame, after {got:,} of {wanted:,} bytes.")


class FrameWriter:
    """Writes frames, from any thread. A write blocks while the pipe is full.

    Args:
        file: where the frames go.
        max_header: the longest header, in bytes.
        max_attachments: bytes of all attachments of a frame together.
    """

    def __init__(self, file: RawWriter, max_header: int = MAX_HEADER, max_attachments: int = MAX_ATTACHMENTS) -> None:
        self._file = file
        self._max_header = max_header
        self._max_attachments = max_attachments
        self._lock = threading.Lock()

    def encode(self, frame: Frame) -> list[Attachment]:
        """The pieces of a frame for `write_pieces`.

        Raises:
            ProtocolError: the frame is over a limit.
            TypeError: the header holds something that is not JSON.
        """
        return encode(frame, self._max_header, self._max_attachments)

    def write(self, frame: Frame) -> None:
        """Write a frame.

        Raises:
            ProtocolError: it is over a limit. Nothing was written.
            OSError: nobody reads any more.
            ValueError: this side has closed the file.
        """
        self.write_pieces(self.encode(frame))

    def write_pieces(self, pieces: Sequence[Attachment]) -> None:
        """Write the pieces of one frame or of several. Small ones travel in one write.

        Raises:
            OSError: nobody reads any more.
            ValueError: this side has closed the file.
        """
        with self._lock:
            small: list[Attachment] = []
            size = 0
            for piece in pieces:
                if size + len(piece) > _PIECE:
                    self._write(b"".join(small))
                    small, size = [], 0
                if len(piece) > _PIECE:
                    self._write(piece)
                else:
                    small.append(piece)
                    size += len(piece)
            self._write(small[0] if len(small) == 1 else b"".join(small))

    def write_now(self, pieces: Sequence[Attachment]) -> bool:
        """The same if it does not have to wait. False: nothing was written.

        Raises:
            OSError: nobody reads any more.
            ValueError: this side has closed the file.
        """
        if sum(map(len, pieces)) > _ATOMIC or not self._lock.acquire(blocking=False):
            return False
        try:
            if not self._has_room():
                return False
            self._write(b"".join(pieces))
            return True
        finally:
            self._lock.release()

    def _has_room(self) -> bool:
        room = select.poll()
        room.register(self._file.fileno(), select.POLLOUT)
        return bool(room.poll(0))

    def _write(self, data: Attachment) -> None:
        written = 0
        while written < len(data):  # a raw file may take only a part
            written += self._file.write(memoryview(data)[written:] if written else data)

    def close(self, wait_s: float = 1.0) -> bool:
        """Close the file: the other side reads the end. False: another thread still writes, so the file stays open."""
        return _close(self._file, self._lock, wait_s)

    def abandon(self) -> None:
        """In a forked process: close this copy of the file. The thread that wrote is not in this process."""
        self._lock = threading.Lock()
        self.close()


def _close(file: RawReader | RawWriter, lock: threading.Lock, wait_s: float) -> bool:
    if not lock.acquire(timeout=wait_s):
        return False
    try:
        with suppress(OSError):  # what was not written yet has nobody to read it
            file.close()
    finally:
        lock.release()
    return True


class Outbox:
    """Frames on their way to a `FrameWriter`.

    `put` does not wait for the pipe. It writes a small frame itself if the pipe has room: a thread that computes loses
    less by that than by waking another one. A thread of the outbox writes everything else. All frames that wait go out
    in one write: deltas that are ready together travel together.

    The parent always reads promptly: it merges deltas on its side, for callers who read slowly. So almost nothing waits
    here. If more than `max_waiting` bytes wait all the same, `put` blocks until there is room. Then the model waits, and
    memory does not grow.

    Args:
        writer: where the frames go. Others may write to it too.
        max_waiting: bytes. A single larger frame is taken if nothing else waits.
    """

    def __init__(self, writer: FrameWriter, max_waiting: int = MAX_WAITING) -> None:
        self._writer = writer
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[tuple[list[Attachment], int] | None] = SimpleQueue()
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0
        self._closed = False
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        return self._waiting

    def put(self, frame: Frame) -> None:
        """Send a frame; from any thread. The frames of one thread keep their order.

        Raises:
            ProtocolError: the frame is over a limit.
            TypeError: the header holds something that is not JSON.
            BrokenPipeError: nobody reads any more, or the outbox is closed.
        """
        pieces = self._writer.encode(frame)
        size = sum(map(len, pieces))
        with self._changed:
            while self._waiting and self._waiting + size > self._max_waiting and not self._ended:
                self._changed.wait()
            if self._ended:
                raise BrokenPipeError("The other side no longer reads.") from self._fault
            if not self._waiting and self._write_now(pieces):
                return
            self._waiting += size
            self._queue.put((pieces, size))

    def _write_now(self, pieces: list[Attachment]) -> bool:
        try:
            return self._writer.write_now(pieces)
        except (OSError, ValueError) as error:
            self._fault = error
            raise BrokenPipeError("The other side no longer reads.") from error

    @property
    def _ended(self) -> bool:
        return self._closed or self._fault is not None

    def flush(self, wait_s: float) -> bool:
        """Wait until everything is written. False: the time is over, or nobody reads any more."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._fault is not None, wait_s)
            return not self._waiting and self._fault is None

    def close(self, wait_s: float = 1.0) -> bool:
        """Write what waits, then end the thread. False: that took longer than `wait_s`; the thread ends with the pipe."""
        deadline = time.monotonic() + wait_s
        flushed = self.flush(wait_s)
        with self._changed:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
                self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()) + 0.1)
        return flushed and not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            with suppress(Empty):
                while True:
                    batch.append(self._queue.get_nowait())
            entries = [entry for entry in batch if entry is not None]
            try:
                if self._fault is None and entries:
                    self._writer.write_pieces([piece for pieces, _ in entries for piece in pieces])
            except (OSError, ValueError) as error:
                self._fault = error
            with self._changed:
                self._waiting -= sum(size for _, size in entries)
                self._changed.notify_all()
            if None in batch:
                return
