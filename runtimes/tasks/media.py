"""`Media`: the one binary value of asks and results: an image, a sound, a document."""

from dataclasses import dataclass
from pathlib import Path

from lfx_local_runtimes.runtimes.tasks.binary import Blob


@dataclass(frozen=True, slots=True)
class Media:
    """Bytes with their MIME type, or a file that holds them.

    Args:
        mime: such as `image/png` or `audio/wav`.
        data: the bytes; None if they are in a file.
        path: the file; None if the bytes are here.

    Raises:
        ValueError: neither or both are given.
    """

    mime: str
    data: Blob | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.path is None):
            raise ValueError("give either data or path")

    def read(self) -> bytes:
        """The bytes.

        Raises:
            OSError: the file cannot be read.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        return self.path.read_bytes()
