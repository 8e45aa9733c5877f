"""The names that a pickle looks up, read from its opcodes. Nothing is unpickled.

A pickle can call whatever it names. Weights name a handful of functions that rebuild tensors; anything else is listed.
"""

import io
import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.trust.notable import group_of

MAX_STREAM = 64 * 2**20
"""Bytes of opcodes that are read of one pickle. The weights themselves are not among them."""

MAX_OPCODES = 4_000_000
MAX_ENTRIES = 100_000
_LEGACY_PICKLES = 5
"""torch.save before 1.6: magic number, version, system, the object, the keys. The weights follow."""

_MARK = object()

_TENSORS = frozenset({
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor", "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter", "torch.Tensor", "torch.Size", "torch.device", "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage", "torch.serialization._get_layout", "collections.OrderedDict", "builtins.set",
    "__builtin__.set", "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "_codecs.encode",
})  # fmt: skip
"""What weights name to rebuild their tensors."""


@dataclass
class Globals:
    """What one file looks up."""

    names: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    @property
    def found(self) -> list[tuple[str, str]]:
        """Group and name of what weights have no use for."""
        return [(group_of(name) or "dynamic code", name) for name in sorted(self.names) if not _rebuilds(name)]


def read_globals(path: Path) -> Globals:
    """The names that a weight file's pickles look up. Raises nothing: what is wrong is in `problems`."""
    result = Globals()
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                _archive(path, result)
            else:
                file.seek(0)
                _bare(_Bounded(file.read(MAX_STREAM + 1)), result)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        result.problems.append(f"it is no archive that can be read ({error})")
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeError, ArithmeticError) as error:
        result.problems.append(f"its pickle is broken ({error})")
    except OSError as error:
        result.problems.append(f"it cannot be read ({error.strerror or error})")
    except MemoryError:
        result.problems.append("it takes too much memory to read")
    return result


class _Bounded(io.BytesIO):
    """A stream that refuses to be longer than it may be."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data[:MAX_STREAM])
        self.cut = len(data) > MAX_STREAM


def _archive(path: Path, result: Globals) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            result.problems.append(f"it holds more than {MAX_ENTRIES:,} entries")
            return
        pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
        if not pickles:
            result.problems.append("it holds no pickle")
        for entry in pickles:
            with archive.open(entry) as file:
                stream = _Bounded(file.read(MAX_STREAM + 1))
            if stream.cut:
                result.problems.append(f"its pickle is longer than {MAX_STREAM >> 20} MiB")
            _one(stream, result)


def _bare(stream: _Bounded, result: Globals) -> None:
    """One pickle, or the row of them that torch.save wrote before 1.6."""
    for _ in range(_LEGACY_PICKLES):
        _one(stream, result)
        if not stream.getbuffer()[stream.tell() :]:
            return


def _one(stream: io.BytesIO, result: Globals) -> None:
    """Read one pickle to its end."""
    stack = _Stack()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_OPCODES:
            raise ValueError(f"more than {MAX_OPCODES:,} opcodes")
        if opcode.name in ("GLOBAL", "INST"):
            result.names.add(str(argument).replace(" ", ".", 1))
        elif opcode.name == "STACK_GLOBAL":
            result.names.add(stack.name())
        elif opcode.name.startswith("EXT"):
            result.names.add(f"copyreg extension {argument}")
        stack.apply(opcode, argument)


class _Stack:
    """The pickle machine's stack as far as text on it is concerned: `STACK_GLOBAL` takes its name from there."""

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._memo: dict[int, Any] = {}

    def name(self) -> str:
        """The name that the two topmost values spell; unknown if one of them is no text."""
        module, name = [None, None, *self._values][-2:]
        return f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is computed"

    def apply(self, opcode: Any, argument: Any) -> None:
        before, after = list(opcode.stack_before), list(opcode.stack_after)
        if opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            self._values.append(self._memo.get(int(argument)))
            return
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(self._memo) if argument is None else int(argument)
            self._memo[index] = self._values[-1] if self._values else None
            return
        if opcode.name == "DUP":
            self._values += self._values[-1:]
            return
        if opcode.name == "POP" and self._values[-1:] == [_MARK]:
            self._values.pop()
            return
        if pickletools.markobject in before:
            self._drop_to_mark()
            before = before[: before.index(pickletools.markobject)]
        if before:
            del self._values[-len(before) :]
        if opcode.name == "MARK":
            self._values.append(_MARK)
        else:
            text = argument if isinstance(argument, str) and opcode.name not in ("GLOBAL", "INST", "PERSID") else None
            self._values += [text] * len(after)

    def _drop_to_mark(self) -> None:
        while self._values and self._values.pop() is not _MARK:
            pass


def _rebuilds(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return name in _TENSORS or (module == "torch" and (last.endswith("Storage") or last in _DTYPES))


_DTYPES = frozenset({
    "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool", "float8_e4m3fn",
    "float8_e5m2", "complex64",
})  # fmt: skip
