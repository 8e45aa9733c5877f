"""Names in Python that a reader of strange code should see, and the group each belongs to."""

_NAMES = {
    "network": """
        socket ssl socketserver http urllib.request urllib3 requests httpx aiohttp ftplib smtplib poplib imaplib
        nntplib telnetlib xmlrpc websocket websockets paramiko grpc boto3 huggingface_hub torch.hub torch.distributed
        asyncio.open_connection asyncio.open_unix_connection asyncio.start_server webbrowser""",
    "programs": """
        subprocess multiprocessing pty os.system os.popen os.fork os.forkpty os.startfile os.posix_spawn
        os.posix_spawnp os.execl os.execle os.execlp os.execlpe os.execv os.execve os.execvp os.execvpe os.spawnl
        os.spawnle os.spawnlp os.spawnlpe os.spawnv os.spawnve os.spawnvp os.spawnvpe posix nt
        asyncio.create_subprocess_exec asyncio.create_subprocess_shell concurrent.futures.ProcessPoolExecutor
        torch.multiprocessing""",
    "native code": """
        ctypes _ctypes cffi torch.utils.cpp_extension torch.ops.load_library torch.classes.load_library numba cupy
        triton pyximport llvmlite kernels sys.setdlopenflags""",
    "dynamic code": """
        eval exec compile __import__ __builtins__ __loader__ __spec__ builtins globals breakpoint importlib imp runpy
        code codeop pkgutil zipimport pickle _pickle cPickle dill cloudpickle marshal shelve copyreg joblib torch.load
        torch.jit.load torch.package numpy.load types.CodeType types.FunctionType operator.attrgetter
        operator.methodcaller sys.modules sys.path sys.meta_path sys.path_hooks sys.path_importer_cache""",
    "files": """
        open io.open io.FileIO io.open_code codecs.open os shutil pathlib tempfile glob fileinput sqlite3 mmap zipfile
        tarfile numpy.save numpy.savez numpy.fromfile numpy.memmap torch.save torch.from_file""",
    "process": """
        os.environ os.environb os.getenv os.getenvb os.putenv os.unsetenv os.kill os.killpg os.abort os._exit os.nice
        os.setuid os.setgid os.setsid os.chroot signal resource atexit gc sys.settrace sys.setprofile sys._getframe
        sys.exit sys.stdin sys.stdout sys.stderr sys.__stdout__ faulthandler ptrace""",
}
_HARMLESS = """
    os.path os.sep os.altsep os.linesep os.name os.curdir os.pardir os.extsep os.PathLike os.fspath os.fsencode
    os.fsdecode os.cpu_count os.getpid os.strerror os.error pathlib.PurePath importlib.metadata importlib.util.find_spec"""

_GROUP: dict[str, str | None] = {name: group for group, names in _NAMES.items() for name in names.split()}
_GROUP |= dict.fromkeys(_HARMLESS.split())

BUILTINS = frozenset({
    "open", "eval", "exec", "compile", "globals", "breakpoint", "__import__", "__builtins__", "__loader__", "__spec__",
})  # fmt: skip
"""Names that need no import."""

ATTRIBUTES = frozenset({
    "__subclasses__", "__globals__", "__builtins__", "__code__", "__closure__", "__getattribute__", "__mro__",
    "__bases__", "__base__", "__reduce__", "__reduce_ex__", "__import__", "__loader__", "exec_module", "load_module",
    "f_globals", "f_locals", "gi_frame", "cr_frame", "tb_frame",
})  # fmt: skip
"""Attributes of any object that lead into the interpreter."""


def group_of(dotted: str) -> str | None:
    """The group of a name such as `os.system`: that of the longest known name which it begins with."""
    while dotted:
        if dotted in _GROUP:
            return _GROUP[dotted]
        dotted = dotted.rpartition(".")[0]
    return None
