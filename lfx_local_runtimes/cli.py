"""`lfx-local-runtimes`: serve, list, download, convert, remove and try models from a shell."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from lfx_local_runtimes import trusting
from lfx_local_runtimes.client import NoServer, ask_server
from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.runtimes.requests import GenerationStream
from lfx_local_runtimes.runtimes.status import state_in_words
from lfx_local_runtimes.runtimes.tasks.generation import ChatMessage, GenerationConfig, TextDelta
from lfx_local_runtimes.settings import load_settings
from lfx_local_runtimes.terminal import duration, print_table, progress_bars, size

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.manager import RuntimeManager
    from lfx_local_runtimes.runtimes.status import DownloadStatus

INTERRUPTED = 130
"""The exit status after Ctrl-C, by the shells' convention."""

app = typer.Typer(
    name="lfx-local-runtimes", help="Local models: serve, list, download, convert, remove and try them.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

Name = Annotated[str, typer.Argument(help="A known model, a path in a model folder, or a Hugging Face id.")]
Url = Annotated[
    str | None,
    typer.Option(
        help="The server, by default the one on this machine's port of `serve`. A Langflow with this package is one, too."
    ),
]
Key = Annotated[str | None, typer.Option(help="Its API key; by default LOCAL_RUNTIMES_API_KEY.")]
ModelDirs = Annotated[
    list[Path] | None,
    typer.Option("--model-dir", help="A model folder; may be repeated. By default LOCAL_RUNTIMES_MODEL_DIRS."),
]


def main() -> None:
    """Run the command line. A fault prints one line to standard error and gives exit status 1."""
    try:
        app()
    except RuntimeFault as fault:
        typer.echo(f"error: {fault}", err=True)
        sys.exit(1)


# -- serving -------------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    host: Annotated[
        str | None,
        typer.Option(
            help="The address to listen on, by default LOCAL_RUNTIMES_HOST, else 127.0.0.1. A key is required if other "
            "machines can reach it."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default LOCAL_RUNTIMES_PORT, else 11540.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Run every model on cuda, mps or cpu. By default LOCAL_RUNTIMES_FORCE_DEVICE.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The key that clients must send. By default LOCAL_RUNTIMES_API_KEY.")
    ] = None,
    model_dir: ModelDirs = None,
) -> None:
    """Serve the REST and OpenAI routes, without Langflow, until Ctrl-C."""
    from lfx_local_runtimes.runtimes.manager import RuntimeManager
    from lfx_local_runtimes.server import make_server

    settings = load_settings(
        host=host, port=port, force_device=device, api_key=api_key, model_dirs=tuple(model_dir) if model_dir else None
    )
    key = settings.api_key.get_secret_value() if settings.api_key else None
    manager = RuntimeManager(settings)
    try:
        server = make_server(
            manager, settings.host, settings.port, key,
            allowed_hosts=settings.allowed_hosts, cors_origins=settings.cors_origins,
        )  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after its end
            server.run()
        if not server.started:
            raise typer.Exit(1)  # uvicorn has printed why
    finally:
        manager.close()


# -- models on this machine ----------------------------------------------------------------------------------------------


@app.command()
def models(url: Url = None, api_key: Key = None, model_dir: ModelDirs = None) -> None:
    """List every known model: those of the running server, or of this machine if no server runs."""
    rows = None if model_dir else _server_models(url, api_key)
    if rows is None:
        with _manager(model_dir) as manager:
            rows = [status.model_dump() for status in manager.list_models()]
    print_table(
        ("NAME", "FORMAT", "SIZE", "STATE"),
        [(row["model_name"], row["format"] or "-", size(row["size_mb"]), _state(row)) for row in rows],
    )
    _explain(rows)


@app.command()
def pull(name: Name, model_dir: ModelDirs = None) -> None:
    """Download a model from the Hugging Face hub. After Ctrl-C, the same command continues the download."""
    with _manager(model_dir) as manager:
        config = manager.catalog.resolve(name).config
        if (there := manager.catalog.locate(config)) is not None:
            typer.echo(f"{config.model_name} is on this machine already: {there}")
            return

        def download() -> Path:
            _tell_sizes(manager.downloads.start(config))
            with progress_bars() as report:
                return manager.downloads.fetch(config, report, lambda: False)

        path = _in_thread(download, manager.downloads.close)
    if path is None:
        typer.echo("Stopped. Run the same command again to continue.", err=True)
        raise typer.Exit(INTERRUPTED)
    typer.echo(f"{config.model_name}: {path}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A GGUF file, or the name of a known model, such as gemma-3-270m.")],
    target: Annotated[
        Path | None, typer.Argument(help="The folder to make. By default SOURCE-safetensors in the first model folder.")
    ] = None,
    *,
    dtype: Annotated[str, typer.Option(help="What the weights are unpacked to: bf16, fp16 or fp32.")] = "bf16",
    model_dir: ModelDirs = None,
) -> None:
    """Write a GGUF model as a safetensors folder for Transformers."""
    from lfx_local_runtimes.runtimes.engines.convert import convert as write

    typer.echo(f"Converting {source}. A large vocabulary takes about a minute.", err=True)
    with _manager(model_dir) as manager, progress_bars() as report:
        typer.echo(f"Wrote {write(source, target, dtype, manager.catalog, report)}")


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="The model.")],
    files: Annotated[bool, typer.Option("--files", help="Also delete its files from the disk.")] = False,
    force: Annotated[bool, typer.Option(help="Cancel the requests that are using it.")] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Remove a model's registration, from the running server or from this machine if no server runs.

    With --files its files go too, if they are in the data folder or in the hub's cache. Files of packages and in other
    folders stay.
    """
    try:
        path = f"models/{quote(name)}{'/files' if files else ''}"
        freed = ask_server("DELETE", url, api_key, path, force=force)["freed_mb"]
    except NoServer:
        if url is not None:
            raise
        with _manager(None) as manager:
            freed = asyncio.run(manager.remove_model(name, files=files)).freed_bytes / 2**20
    typer.echo(f"{name} is removed. {f'{size(freed)} are free again.' if files else 'Its files stay.'}")


def _tell_sizes(download: "DownloadStatus") -> None:
    """Print what a download takes, before its first byte."""
    if download.total_bytes is not None and download.disk_free_bytes is not None:
        left, free = download.total_bytes - download.done_bytes, download.disk_free_bytes
        typer.echo(f"To download: {left / 1e9:,.2f} GB. Free on the disk: {free / 1e9:,.2f} GB.", err=True)
    if download.memory_bytes is not None and download.memory_budget_bytes is not None:
        needed, budget = size(download.memory_bytes / 2**20), size(download.memory_budget_bytes / 2**20)
        typer.echo(f"In memory: about {needed} of {budget} on {download.device}, in {download.engine}.", err=True)


def _in_thread(work: Callable[[], Path], stop: Callable[[], None]) -> Path | None:
    """The result of `work`. Ctrl-C calls `stop` and waits for the end of `work`; then there is no result."""
    done: list[Path] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=run, name="pull", daemon=True)
    try:
        thread.start()
        thread.join()
    except KeyboardInterrupt:
        stop()
        thread.join()
        return None
    if failed:
        raise failed[0]
    return done[0]


app.command()(trusting.trust)


# -- talking -------------------------------------------------------------------------------------------------------------


@app.command()
def run(
    name: Name,
    prompt: Annotated[
        str | None, typer.Argument(help="The question. Without one: the standard input, or a chat at a terminal.")
    ] = None,
    *,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=5)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    model_dir: ModelDirs = None,
) -> None:
    """Ask a model, in this process. Ctrl-C stops the answer."""
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    chosen = {option: value for option, value in options.items() if value is not None}
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    with _manager(model_dir) as manager:
        chat = Chat(manager, name, system, chosen)
        if prompt is None:
            _converse(chat)
        elif not chat.ask(prompt):
            raise typer.Exit(INTERRUPTED)


class Chat:
    """A conversation with one model, printed while it is generated."""

    def __init__(self, manager: "RuntimeManager", model: str, system: str | None, options: dict[str, Any]) -> None:
        self._manager = manager
        self._model = model
        self._options = options
        self._turns = [ChatMessage(role="system", content=system)] if system else []

    def ask(self, question: str) -> bool:
        """Print the answer. False if Ctrl-C stopped it; the part that was printed stays in the conversation.

        Raises:
            RuntimeFault: it failed. The question is not part of the conversation.
        """
        turns = [*self._turns, ChatMessage(role="user", content=question)]
        config = GenerationConfig(messages=tuple(turns), **self._options)
        pieces: list[str] = []
        stream: GenerationStream | None = None
        try:
            with contextlib.ExitStack() as bars:
                stream = self._manager.stream(self._model, config, progress=bars.enter_context(progress_bars()))
                for delta in stream.deltas():
                    bars.close()
                    pieces.append(delta.text)
                    self._show(delta)
        except KeyboardInterrupt:
            complete = False
            if stream is not None:
                stream.cancel()
        else:
            complete = True
        sys.stdout.write("\n")
        self._turns = [*turns, ChatMessage(role="assistant", content="".join(pieces))]
        return complete

    def _show(self, delta: TextDelta) -> None:
        """Print text. Reasoning is printed dim, and only at a terminal."""
        if delta.reasoning and sys.stdout.isatty():
            typer.secho(delta.reasoning, dim=True, nl=False)
        sys.stdout.write(delta.text)
        sys.stdout.flush()


def _converse(chat: Chat) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then edits lines
    typer.echo("Ctrl-C stops an answer, Ctrl-D ends the chat.", err=True)
    while True:
        try:
            question = input("> ").strip()
            if question:
                chat.ask(question)
        except EOFError:  # noqa: PERF203 - it waits for a person
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo("\nCtrl-D ends the chat.", err=True)
        except RuntimeFault as fault:
            typer.echo(f"error: {fault}", err=True)


# -- a running server ----------------------------------------------------------------------------------------------------


@app.command()
def ps(url: Url = None, api_key: Key = None) -> None:
    """List the models in a running server's memory, and failed ones, with their processes."""
    try:
        rows = ask_server("GET", url, api_key, "status")["models"]
    except NoServer as fault:
        if url is not None:
            raise
        typer.echo(f"No server runs here, so no model is in memory. {fault.hint}")
        typer.echo(
            "For the models of a Langflow give its address and a key: ps --url http://localhost:7860 --api-key …"
        )
        return
    print_table(
        ("NAME", "ENGINE", "DEVICE", "MEMORY", "STATE", "USE", "PID", "UPTIME", "RESTARTS", "CONFINED"),
        [
            (
                row["model_name"], row["engine"] or "-", row["device"] or "-", size(row["memory_used_mb"]), row["state"],
                _use(row), _process(row), duration(row["uptime_s"]), str(row["restarts"]), row["confined"] or "-",
            )
            for row in rows
        ],
    )  # fmt: skip
    _explain(rows)


def _explain(rows: Iterable[dict[str, Any]]) -> None:
    """Print why models cannot be loaded, or how their processes ended."""
    for row in rows:
        if row["last_exit"]:
            typer.echo(f"{row['model_name']}, last exit: {row['last_exit']}", err=True)
        elif row["error"]:
            typer.echo(f"{row['model_name']}: {row['error']}", err=True)


def _state(row: dict[str, Any]) -> str:
    return state_in_words(row["state"], on_disk=row.get("on_disk", True), error=row["error"])


def _use(row: dict[str, Any]) -> str:
    """The number of a model's requests, or how long it has had none."""
    if row["leases"] or row["idle_s"] is None:
        return str(row["leases"])
    return f"idle {duration(row['idle_s'])}"


def _process(row: dict[str, Any]) -> str:
    return "-" if row["pid"] is None else "inline" if row["isolation"] == "inline" else str(row["pid"])


@app.command()
def stop(
    name: Annotated[str | None, typer.Argument(help="The model to take out of memory.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every model.")] = False,
    force: Annotated[bool, typer.Option(help="Cancel the requests that are using it.")] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Take a model, or all of them, out of a running server's memory."""
    if (name is None) != every:
        raise typer.BadParameter("Give a model's name, or --all.")
    if name is not None:
        ask_server("POST", url, api_key, "models/unload", model_name=name, force=force)
        typer.echo(f"{name} is out of memory.")
        return
    answer = ask_server("POST", url, api_key, "unload-all", force=force)
    typer.echo(f"Unloading: {', '.join(answer['unloading']) or 'nothing is loaded'}")
    if answer["in_use"]:
        typer.echo(f"In use, left alone (--force cancels their requests): {', '.join(answer['in_use'])}", err=True)
        raise typer.Exit(1)


def _server_models(url: str | None, api_key: str | None) -> list[dict[str, Any]] | None:
    """The server's list; None if no server answers at the default address."""
    try:
        rows: list[dict[str, Any]] = ask_server("GET", url, api_key, "models")["models"]
    except NoServer:
        if url is None:
            return None
        raise
    return rows


# -- what all of them use ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _manager(model_dirs: Sequence[Path] | None) -> "Iterator[RuntimeManager]":
    from lfx_local_runtimes.runtimes.manager import RuntimeManager

    settings = load_settings(model_dirs=tuple(model_dirs) if model_dirs else None)
    manager = RuntimeManager(settings.model_copy(update={"max_download_gb": None}))  # the limit is for other people
    try:
        yield manager
    finally:
        manager.close()


if __name__ == "__main__":
    main()
