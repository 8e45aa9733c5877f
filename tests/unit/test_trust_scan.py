"""The static scan of a model's code: what it lists, and that hostile files neither run nor break it."""

import collections
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.processes.child import ChildNotStarted
from lfx_local_runtimes.runtimes.processes.confinement import Policy
from lfx_local_runtimes.runtimes.processes.frames import Frame
from lfx_local_runtimes.runtimes.trust import model_code, scan, worker
from lfx_local_runtimes.runtimes.trust.pickles import read_globals
from lfx_local_runtimes.runtimes.trust.python_code import Unreadable, read_python
from lfx_local_runtimes.runtimes.trust.report import Finding, shown
from tests.routes_app import write_model
from tests.trusted_models import Calls, code_of, pickle_of, scan_here, torch_zip, write_code, write_pickle


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "own_process" not in request.fixturenames:
        scan_here(monkeypatch)


@pytest.fixture
def own_process() -> None:
    """The scan starts its process, as it does for users."""


def found(source: str) -> list[tuple[str, str]]:
    return sorted({(group, what) for group, what, _ in read_python(source.encode()).found})


# -- what a file names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "group", "what"),
    [
        ("import socket", "network", "import socket"),
        ("import requests as r\nr.get('x')", "network", "requests.get"),
        ("from urllib.request import urlopen as u\nu('x')", "network", "urllib.request.urlopen"),
        ("import os\nos.system('x')", "programs", "os.system"),
        ("import os as o\no.execv('x', [])", "programs", "os.execv"),
        ("from os import popen\npopen('x')", "programs", "os.popen"),
        ("from subprocess import *", "programs", "from subprocess import *"),
        ("import os\nrun = os.system", "programs", "os.system"),  # a reference is enough
        ("import os\ngetattr(os, 'system')('x')", "programs", "os.system"),
        ("import posix\nposix.system('x')", "programs", "posix.system"),
        ("import ctypes", "native code", "import ctypes"),
        ("import torch\ntorch.ops.load_library('x')", "native code", "torch.ops.load_library"),
        ("import torch\ntorch.load('x')", "dynamic code", "torch.load"),
        ("eval('1')", "dynamic code", "eval"),
        ("exec('1')", "dynamic code", "exec"),
        ("compile('1', '', 'eval')", "dynamic code", "compile"),
        ("__import__('os')", "dynamic code", "__import__"),
        ("__builtins__['eval']", "dynamic code", "__builtins__"),
        ("import pickle\npickle.loads(b'')", "dynamic code", "pickle.loads"),
        ("import importlib\nimportlib.import_module('x')", "dynamic code", "importlib.import_module"),
        ("().__class__.__bases__[0].__subclasses__()", "dynamic code", "__subclasses__"),
        ("getattr(x, 'sys' + 'tem')", "dynamic code", "getattr with a computed name"),
        ("getattr(x, '__globals__')", "dynamic code", "__globals__"),
        ("AutoModel.from_pretrained('x', trust_remote_code=True)", "dynamic code", "trust_remote_code"),
        ("# coding: utf-7\n", "dynamic code", "the encoding utf-7"),
        ("open('x')", "files", "open"),
        ("import os\nos.remove('x')", "files", "os.remove"),
        ("import os\nvars(os)", "files", "os"),  # the whole module is handed on
        ("from pathlib import Path\nPath('x').unlink()", "files", "pathlib.Path"),
        ("import os\nos.environ['TOKEN']", "process", "os.environ"),
        ("def f():\n    import signal\n    return signal.SIGTERM", "process", "signal.SIGTERM"),
    ],
)
def test_a_notable_name_is_listed(source: str, group: str, what: str) -> None:
    assert (group, what) in found(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nfrom torch import nn\nclass M(nn.Module):\n    def forward(self, x):\n        return x + 1",
        "import os\nos.path.join('a', 'b')", "getattr(config, 'hidden_size', 1)", "code = 1\ncode + 1",
        "self.__class__.__name__", "model.eval()", "re.compile('x')", "open = 1", "signal = resource = 2\nsignal",
    ],
)  # fmt: skip
def test_ordinary_code_is_not_notable(source: str) -> None:
    assert found(source) == []


def test_lines_are_told_and_a_multiline_chain_has_its_first() -> None:
    reading = read_python(b"import os\n\n\nos.system('a')\n(os\n .system)('b')\n")
    assert sorted(line for _, what, line in reading.found if what == "os.system") == [4, 5]


@pytest.mark.parametrize(
    "source",
    [
        b"def (", b"\0", b"x = 1\0", b"# coding: no-such-codec\n", b"\xff\xfe", b"(" * 500, b"-" * 200_000 + b"1",
        b"a" + b".b" * 200_000, b"+".join([b"1"] * 100_000), b"if a:\n pass\n" + b"elif a:\n pass\n" * 50_000,
        b"lambda:" * 50_000 + b"1",
    ],
)  # fmt: skip
def test_what_python_could_not_run_is_unreadable(source: bytes) -> None:
    with pytest.raises(Unreadable):
        read_python(source)


# -- which files a folder would run --------------------------------------------------------------------------------------


def test_a_model_without_code_has_no_report(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    (tmp_path / "m" / "unused.py").write_text("import os")
    assert scan.scan(read_model(tmp_path / "m")) == ()


def test_the_report_has_files_findings_and_imports(tmp_path: Path) -> None:
    folder = write_code(
        tmp_path / "m", "import socket\nfrom .layers import Layer\n", layers="import os\nos.system('x')\n", unused="1"
    )
    report = code_of(folder)
    assert (report.kind, report.files, report.problems) == ("remote_code", ("layers.py", "modeling.py"), ())
    assert report.source == str(folder.resolve())
    assert report.imports == ("os", "socket")
    assert report.findings == (
        Finding("network", "import socket", "modeling.py", (1,)),
        Finding("programs", "os.system", "layers.py", (2,)),
    )


@pytest.mark.parametrize(
    ("statement", "file"),
    [
        ("from . import other", "other.py"), ("from .other import x", "other.py"), ("from .sub import x", "sub/__init__.py"),
        ("from .sub import deep", "sub/deep.py"), ("from .sub.deep import x", "sub/deep.py"),
        ("import other", "other.py"), ("import sub.deep", "sub/deep.py"), ("if 0:\n    from .other import x", "other.py"),
        ("def f():\n    from .other import x", "other.py"), ("try:\n    from .other import x\nexcept Exception: 0", "other.py"),
    ],
)  # fmt: skip
def test_what_is_imported_from_the_folder_is_followed(tmp_path: Path, statement: str, file: str) -> None:
    folder = write_code(tmp_path / "m", statement, other="from .modeling import x")
    (folder / "sub").mkdir()
    (folder / "sub" / "__init__.py").touch()
    (folder / "sub" / "deep.py").write_text("from ..other import x")
    assert {file, "modeling.py"} <= set(code_of(folder).files)
    if file == "sub/deep.py":
        assert "other.py" in code_of(folder).files


@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("reference", ["tok.T", ["tok.T", None], [None, "tok.T"]])
def test_every_configuration_that_names_code_is_read(tmp_path: Path, name: str, reference: Any) -> None:
    write_model(tmp_path / "m")
    (tmp_path / "m" / name).write_text(json.dumps({"auto_map": {"AutoTokenizer": reference}}))
    (tmp_path / "m" / "tok.py").touch()
    assert code_of(tmp_path / "m").files == ("tok.py",)


def test_code_in_place_of_generate_needs_no_mention(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    (tmp_path / "m" / "custom_generate").mkdir()
    (tmp_path / "m" / "custom_generate" / "generate.py").write_text("from . import more")
    (tmp_path / "m" / "custom_generate" / "more.py").touch()
    assert code_of(tmp_path / "m").files == ("custom_generate/generate.py", "custom_generate/more.py")


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("org/other--modeling.Mine", "another repository"), ("../../x--modeling.Mine", "another repository"),
        ("missing.Mine", "cannot be read"), ("/etc/passwd.Mine", "cannot be read"), ("nodot", "no class in a file"),
        ("../modeling.Mine", "no class"), ("a.b.c", "no class"), ("nul\0.Mine", "cannot be read"),
        ("{outside}.Mine", "leads out of"), ("link.Mine", "leads out of"), ("folder.Mine", "leads out of"),
        ("\ud800.Mine", "cannot be read"), ("fifo.Mine", "leads out of"),
    ],
)  # fmt: skip
def test_code_that_cannot_be_checked_is_a_problem(tmp_path: Path, reference: str, problem: str) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("import os")
    folder = write_code(tmp_path / "m", reference=reference.format(outside=outside.with_suffix("")))
    (folder / "link.py").symlink_to(outside)
    (folder / "folder.py").mkdir()
    os.mkfifo(folder / "fifo.py")
    report = code_of(folder)
    assert report.sha256 == ""
    assert problem in " ".join(report.problems)
    assert report.files == ()


def linked_snapshot(folder: Path) -> Path:
    """A model in the hub's cache: its files are links to blobs."""
    snapshot = folder / "models--org--name" / "snapshots" / ("a" * 40)
    write_code(snapshot)
    blob = folder / "models--org--name" / "blobs" / "123"
    blob.parent.mkdir()
    (snapshot / "modeling.py").rename(blob)
    (snapshot / "modeling.py").symlink_to(blob)
    return snapshot


def test_links_into_the_hubs_blobs_are_the_models_own(tmp_path: Path) -> None:
    report = code_of(linked_snapshot(tmp_path))
    assert (report.files, report.problems) == (("modeling.py",), ())
    assert report.source == f"org/name@{'a' * 40}"


def test_an_import_from_above_the_folder_is_listed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.py").touch()
    report = code_of(write_code(tmp_path / "m", "from ..secret import x"))
    assert report.files == ("modeling.py",)
    assert [one.group for one in report.findings] == ["dynamic code"]


def test_a_file_of_100_mb_is_refused_without_reading_it(tmp_path: Path) -> None:
    folder = write_code(tmp_path / "m")
    os.truncate(folder / "modeling.py", 100 * 2**20)
    report = code_of(folder)
    assert "too long" in report.problems[0]
    assert report.sha256 == ""


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    count = model_code.MAX_FILES + 1
    folder = write_code(tmp_path / "m", "".join(f"from . import m{index}\n" for index in range(count)))
    for index in range(count):
        (folder / f"m{index}.py").touch()
    report = code_of(folder)
    assert "more than" in report.problems[0]
    assert len(report.files) == model_code.MAX_FILES


def test_a_file_that_does_not_parse_is_named_and_nothing_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = write_code(tmp_path / "m", f"open({str(marker)!r}, 'w')\n", broken="def (")
    assert code_of(folder).problems == ()
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\nfrom . import broken\n")
    assert "broken.py: it is not valid Python (line 1)" in code_of(folder).problems[0]
    assert not marker.exists()


def test_strange_names_are_escaped(tmp_path: Path) -> None:
    folder = write_code(tmp_path / "m", "from . import ключ\n", ключ="import os\nos.system('x')")
    report = code_of(folder)
    assert report.files == ("\\u043a\\u043b\\u044e\\u0447.py", "modeling.py")
    assert all(one.file.isascii() for one in report.findings)
    assert shown("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\n\\u202eb"
    assert len(shown("x" * 10_000)) < 300


# -- the SHA-256 ---------------------------------------------------------------------------------------------------------


def test_any_change_of_the_code_changes_the_sha256_and_other_files_do_not(tmp_path: Path) -> None:
    folder = write_code(tmp_path / "m", "from . import other\n", other="x = 1\n")
    first = code_of(folder).sha256
    assert len(first) == 64
    (folder / "README.md").write_text("hello")
    (folder / "unused.py").write_text("import os")
    assert code_of(folder).sha256 == first
    (folder / "other.py").write_text("x = 2\n")
    second = code_of(folder).sha256
    (folder / "other.py").write_text("x = 1\n")
    assert code_of(folder).sha256 == first
    (folder / "modeling.py").write_text("from . import third\n")
    (folder / "other.py").rename(folder / "third.py")
    assert len({first, second, code_of(folder).sha256}) == 3


def test_a_name_cannot_pass_for_content() -> None:
    assert model_code.combined("pickle", {"a": "bc"}) != model_code.combined("pickle", {"ab": "c"})
    assert model_code.combined("pickle", {"a": "b"}) != model_code.combined("remote_code", {"a": "b"})
    assert model_code.combined("pickle", {"a": "1", "b": "2"}) == model_code.combined("pickle", {"b": "2", "a": "1"})


# -- pickles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_pickle_looks_up_is_listed_and_not_called(tmp_path: Path, protocol: int, zipped: bool) -> None:
    marker = tmp_path / "ran"
    value = {"a": collections.OrderedDict(), "b": Calls(os.system, f"touch {marker}"), "c": Calls(eval, "1")}
    content = pickle.dumps(value, protocol)
    report = pickle_of(write_pickle(tmp_path / "m", torch_zip(content) if zipped else content))
    assert report.kind == "pickle"
    assert {one.partition(".")[2] for one in report.imports} == {"system", "eval", "OrderedDict"}
    assert [(one.group, one.what.partition(".")[2]) for one in report.findings] == [
        ("programs", "system"), ("dynamic code", "eval"),
    ]  # fmt: skip
    assert report.problems == ()
    assert not marker.exists()


def test_every_pickle_of_the_old_format_is_read(tmp_path: Path) -> None:
    rows = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, Calls(os.system, "x"), ["key"]]
    content = b"".join(pickle.dumps(row, 2) for row in rows) + b"weights"
    (tmp_path / "old.bin").write_bytes(content)
    looked_up = read_globals(tmp_path / "old.bin")
    assert looked_up.problems == []
    assert [name.partition(".")[2] for name in looked_up.names] == ["system"]


def test_two_entries_of_one_name_are_both_read(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = torch_zip(pickle.dumps(Calls(os.system, "x"), 2), pickle.dumps({}, 2))
    (tmp_path / "two.bin").write_bytes(content)
    assert len(read_globals(tmp_path / "two.bin").names) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # two texts and STACK_GLOBAL
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940\x30h\x00h\x01\x93.",  # from the memo, after both were dropped
        b"\x80\x04\x8c\x06system\x94\x8c\x02os(\x8c\x04junk1h\x00\x93.",  # junk above a mark is dropped in between
        b"\x80\x02cos\nsystem\n.",
        b"(ios\nsystem\n.",  # INST, of protocol 0
    ],
)
def test_a_name_is_found_however_it_is_spelled(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    looked_up = read_globals(tmp_path / "x.bin")
    assert (looked_up.names, looked_up.problems) == ({"os.system"}, [])
    assert looked_up.found == [("programs", "os.system")]


def test_a_name_that_is_computed_is_listed_as_such(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x80\x04\x8c\x02os)\x93.")
    assert read_globals(tmp_path / "x.bin").found == [("dynamic code", "a name that is computed")]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80", b"\x80\x04", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", b"\x80\x02I" + b"9" * 10_000 + b"\n.",
        b"PK\x03\x04", b"PK\x03\x04" + b"\0" * 100, torch_zip(b"x", name="other"), torch_zip(b"\x80\x02"),
        pickle.dumps({}, 2) + b"\xff\xff", b"\x80\x04" + b"\x8c\xffabc" * 3,
    ],
)  # fmt: skip
def test_a_broken_pickle_is_a_problem(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    assert read_globals(tmp_path / "x.bin").problems


def test_a_pickle_that_unpacks_to_much_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfx_local_runtimes.runtimes.trust.pickles.MAX_STREAM", 1000)
    (tmp_path / "x.bin").write_bytes(torch_zip(pickle.dumps(["x" * 5000], 2)))
    assert any("longer than" in problem for problem in read_globals(tmp_path / "x.bin").problems)
    monkeypatch.setattr("lfx_local_runtimes.runtimes.trust.pickles.MAX_OPCODES", 10)
    (tmp_path / "x.bin").write_bytes(pickle.dumps(list(range(100)), 2))
    assert "opcodes" in read_globals(tmp_path / "x.bin").problems[0]


def test_the_sha256_of_weights_is_over_all_of_them(tmp_path: Path) -> None:
    folder = write_pickle(tmp_path / "m")
    first = pickle_of(folder).sha256
    with (folder / "pytorch_model.bin").open("ab") as file:
        file.write(b"\0")
    assert pickle_of(folder).sha256 not in ("", first)


def test_shards_that_the_index_names_belong_to_the_weights(tmp_path: Path) -> None:
    folder = write_pickle(tmp_path / "m")
    (folder / "hidden.dat").write_bytes(torch_zip(pickle.dumps(Calls(os.system, "x"), 2)))
    index = {"weight_map": {"a": "pytorch_model.bin", "b": "hidden.dat"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    report = pickle_of(folder)
    assert report.files == ("hidden.dat", "pytorch_model.bin")
    assert [one.group for one in report.findings] == ["programs"]

    (tmp_path / "outside.bin").write_bytes(b"x")
    for name in ("../outside.bin", "missing.bin", "/etc/passwd"):
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        report = pickle_of(folder)
        assert report.sha256 == ""
        assert report.problems


# -- the process of the scan ---------------------------------------------------------------------------------------------


def test_a_scan_that_dies_is_a_problem_and_not_a_model_without_code(
    own_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_code(tmp_path / "m")
    monkeypatch.setattr(scan, "TIME_LIMIT_S", 0.0)
    assert "did not answer within 0 s" in code_of(folder).problems[0]
    monkeypatch.setattr(scan, "TIME_LIMIT_S", 60.0)
    monkeypatch.setattr(scan, "_WORKER", "no_such_module")
    assert code_of(folder).problems[0].startswith("The scan ")
    assert code_of(folder).sha256 == ""

    def not_started(*arguments: object, **options: object) -> None:
        raise ChildNotStarted("The scan did not start.")

    monkeypatch.setattr(scan, "Child", not_started)
    assert code_of(folder).problems == ("The scan did not start.",)


def test_the_scan_reads_in_a_process_of_its_own(
    own_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_code(tmp_path / "code", "import socket")
    weights = write_pickle(tmp_path / "weights", torch_zip(pickle.dumps(Calls(os.system, "x"), 2)))
    for name in ("ast.parse", "pickletools.genops"):
        monkeypatch.setattr(name, lambda *arguments: pytest.fail("it was read here"))
    assert [one.what for one in code_of(folder).findings] == ["import socket"]
    assert [one.group for one in pickle_of(weights).findings] == ["programs"]


def test_links_into_the_blobs_can_be_read_by_the_confined_scan(own_process: None, tmp_path: Path) -> None:
    report = code_of(linked_snapshot(tmp_path))
    assert (report.files, report.problems) == (("modeling.py",), ())


def test_the_scan_can_read_the_model_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies: list[Policy] = []
    sent: list[Frame] = []
    monkeypatch.setattr(worker, "confine", policies.append)
    folder = write_code(tmp_path / "m")
    link: Any = SimpleNamespace(receive=lambda: Frame({"folder": str(folder)}), send=sent.append)
    worker.main(link)
    assert policies == [Policy(read=(folder.resolve(),), memory=worker.MEMORY_LIMIT)]
    assert list(sent[0].header["files"]) == ["modeling.py"]
