"""The command line. Nothing here imports torch: the engine's process does, and what writes or checks a directory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from opsin_client.adapters.commands import app as adapters_app
from opsin_client.batches.commands import app as batches_app
from opsin_client.jobs.commands import app as jobs_app
from opsin_client.migrate.commands import app as migrate_app
from opsin_plugins.spec import SpecError
from opsin_server import __version__, printer, streams
from opsin_server.api_keys import read_keys
from opsin_server.check_data.config import CheckConfig
from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.embedded import MODEL
from opsin_server.errors import ConfigError, OpsinError
from opsin_server.finetune.config import FinetuneConfig
from opsin_server.jobs.options import resize_of
from opsin_server.options import build, fields_of, read_config_file, size, takes
from opsin_server.served_name import readable
from opsin_server.storage_config import StorageConfig

app = typer.Typer(
    rich_markup_mode=None,  # plain help: no column cuts a flag short
    help="Serve a vision-language model behind the OpenAI API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
Scheme = Literal["int4", "int8", "fp8"]
SERVE = tuple(fields_of(ServerConfig))
STORED = tuple(field for field in fields_of(StorageConfig) if field.name != "ephemeral")
# What decides whether a checkpoint serves, and with how much memory.
DECIDING = (
    "mmproj", "dtype", "quantization", "quantize-activations", "quantize-vision", "max-context", "max-sequences",
    "max-image-tokens", "model-option", "plugins", "kv-memory", "kv-dtype", "encoder-memory", "max-loras",
    "max-lora-rank", "max-cpu-loras", "lora-projectors", "train-memory", "max-train-jobs",
)  # fmt: skip
PROMPTS = ("mmproj", "model-option", "plugins", "max-image-tokens")  # what decides how a row is encoded
PROMPT = tuple(field for field in fields_of(EngineConfig) if field.name in PROMPTS)
CHECK_DATA = tuple(fields_of(CheckConfig))
DATA = (*CHECK_DATA, *PROMPT)
FINETUNE = tuple(fields_of(FinetuneConfig))
TRAINED_IN = tuple(
    field for field in fields_of(EngineConfig)
    if field.name in (
        "mmproj", "device", "dtype", "quantization", "quantize-activations", "quantize-vision", "threads",
        "model-option", "plugins", "train-memory",
    )
)  # fmt: skip
CHECK = tuple(field for field in fields_of(EngineConfig) if field.name in DECIDING)


def _bytes(text: str) -> int:
    try:
        return size(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def _gpu(text: str) -> int:
    found = _bytes(text)
    if found < 2**30:
        raise typer.BadParameter(f"{text!r} is {found:,} bytes: write 24GiB")
    return found


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"opsin {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Serve a checkpoint directory.")
@takes(SERVE)
def serve(
    model: Annotated[
        Path | None,
        typer.Argument(show_default=False, help="A checkpoint directory; without one, the embedded opsin-mini."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A TOML file with the names of these options.")
    ] = None,
    **given: Any,
) -> None:
    """Serve a checkpoint directory (safetensors, config.json, tokenizer.json) until SIGTERM."""
    gc.disable()  # until all is imported: a seventh of that time is spent looking through what stays [measured]
    from opsin_server.api.process import run

    written = {} if config is None else read_config_file(config, SERVE)
    if keys := read_keys(given.get("api_key", ()), os.environ):
        given["api_key"] = list(keys)
    directory = model or Path(written.pop("model", MODEL))
    given = {**written, **given}
    settings = build(ServerConfig, given, SERVE, {"engine": {"model": str(directory)}}).without_last_slashes()
    printer.install()
    run(settings)
    printer.drain()
    os._exit(0)  # a thread that waits for a name server which never answers must not keep the process


@app.command(short_help="Will a checkpoint serve, and what does it take?")
@takes(CHECK)
def check(
    model: Annotated[Path, typer.Argument(show_default=False, help="A checkpoint directory.")],
    gpu: Annotated[
        int | None, typer.Option(parser=_gpu, metavar="SIZE", help="A GPU's memory, as 24GiB. Default: this machine.")
    ] = None,
    digest: Annotated[
        bool, typer.Option("--digest", help="Read the weights through for the content digest, and keep it.")
    ] = False,
    **given: Any,
) -> None:
    """Will it serve, and what does it take? Reads headers only, no weights unless --digest asks for it."""
    from opsin_server.console import digest_row, estimate_rows, show
    from opsin_server.engine.startup.check_directory import check_directory
    from opsin_server.text.read_text_side import read_text_side

    config = build(EngineConfig, given, CHECK, {"model": str(model)})
    read_text_side(
        config
    )  # tokenizer and chat template, too: no verdict before all is read, and seconds before the rest
    estimate = check_directory(config, gpu)
    console = Console()
    show(console, [digest_row(console, model, config.tower_file(), computed=digest), *estimate_rows(estimate)])
    raise typer.Exit(1 if estimate.refusal else 0)


@app.command("check-data", short_help="Would a training file be trained on, and what is learned from it?")
@takes(DATA)
def check_training_file(
    file: Annotated[Path, typer.Argument(show_default=False, exists=True, dir_okay=False, help="JSON lines.")],
    model: Annotated[
        Path | None,
        typer.Option(show_default=False, help="A checkpoint directory; without one, the embedded opsin-mini."),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(metavar="min|max|PIXELS|WxH", help="Resize images before the model's own preprocessing."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="How many rows to print.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    **given: Any,
) -> None:
    """Reads every row and image as a fine-tuning job would, with the model's own chat template and tokenizer, and says
    what is wrong by line. Images may be paths below the file's folder. Exits with 1 where the file would be refused."""
    from opsin_server.check_data.command import check_data

    engine = build(EngineConfig, given, PROMPT, {"model": str(model or MODEL)})
    config = build(CheckConfig, given, CHECK_DATA, {"data": {"images": resize_of(resize)}})
    raise typer.Exit(0 if check_data(file, engine, config, show, json=json) else 1)


@app.command(name="finetune", short_help="Train a LoRA of a checkpoint directory.")
@takes((*FINETUNE, *TRAINED_IN))
def fine_tune(
    model: Annotated[
        Path | None,
        typer.Argument(show_default=False, help="A checkpoint directory; without one, the embedded opsin-mini."),
    ] = None,
    train: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The rows to train on, as JSON lines.")
    ] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="The directory to write: a PEFT adapter.")] = ...,  # type: ignore[assignment]
    valid: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Rows to validate with; the best checkpoint is kept."),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(metavar="<min|max|N|WxH>", help="Resize images as Unsloth's collator does. Default: max."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    **given: Any,
) -> None:
    """Train a LoRA of a checkpoint directory, of any of its parts, and write it as PEFT does."""
    from opsin_server.finetune.command import Request, finetune

    directory = str(model or MODEL)
    fixed = {
        "model": directory,
        "max_sequences": 1,
        "max_loras": 0,
        "max_train_jobs": 1,
        "train_part": 0.5,
        "prefix_cache": False,
    }
    engine = build(EngineConfig, given, TRAINED_IN, fixed)
    config = build(FinetuneConfig, given, FINETUNE, {"data": {"min_rows": 1, "images": resize_of(resize)}})
    raise typer.Exit(finetune(Request(train, valid, out, resume), engine, config))


@app.command()
def chat(
    question: Annotated[str, typer.Argument(help="What to ask. Without it: a conversation.")] = "",
    image: Annotated[list[Path] | None, typer.Option(help="A picture to ask about; may be repeated.")] = None,
    url: Annotated[str, typer.Option(envvar="OPENAI_BASE_URL", help="Any OpenAI-compatible server.")] = (
        "http://127.0.0.1:8000/v1"
    ),
    model: Annotated[str | None, typer.Option(help="Default: the first that the server names.")] = None,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="What the server asks for.")] = "none",
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Ask a served model, and see the answer stream in."""
    from opsin_client.terminal import Terminal

    name = None if model is None else readable(model)
    Terminal(readable(url), readable(api_key), name, temperature, max_tokens).run(readable(question), image or [])


app.add_typer(adapters_app, name="adapters")
app.add_typer(jobs_app, name="jobs")
app.add_typer(batches_app, name="batches")
app.add_typer(migrate_app, name="migrate")

plugins_app = typer.Typer(rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")


@plugins_app.callback(invoke_without_command=True)
def plugins(
    context: typer.Context,
    names: Annotated[str | None, typer.Option("--plugins", help="An allow-list, as for serve.")] = None,
) -> None:
    """List model families, vision encoders and fusions, and what failed to load; or check a family."""
    if context.invoked_subcommand is not None:
        return
    from opsin_server.console import show_plugins

    allow = None if names is None else [name.strip() for name in names.split(",")]
    raise typer.Exit(0 if show_plugins(Console(), allow) else 1)


@plugins_app.command("check")
def check_plugin(
    name: Annotated[
        str | None, typer.Argument(show_default=False, help="An architecture, as `plugins` lists it.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All architectures that are installed.")] = False,
) -> None:
    """Make a tiny random model of a family, and see whether it keeps what the contract promises."""
    if (name is None) is not every:
        raise typer.BadParameter("name one architecture, or say --all")
    # In a process of its own: this one imports no torch, and a plugin may end the one that it runs in.
    command = [sys.executable, "-P", "-m", "opsin_plugins.conformance", *([] if name is None else [name])]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603


@app.command(short_help="Say what this machine has.")
def doctor() -> None:
    """Say what this machine has: Python, torch, triton, the device, and which kernels run."""
    from opsin_server.console import doctor_rows, show

    rows, healthy = doctor_rows()
    show(Console(), rows)
    raise typer.Exit(0 if healthy else 1)


@app.command()
def compose(
    out: Annotated[Path, typer.Argument(show_default=False, help="The directory to write: a new or an empty one.")],
    vision: Annotated[Path, typer.Option(help="A vision encoder's checkpoint directory, as CLIP's or SigLIP's.")],
    language: Annotated[Path, typer.Option(help="A Llama's, Mistral's or Qwen's checkpoint directory.")],
    fusion: Annotated[str, typer.Option(help="How pictures enter the language model.")] = "scatter",
    projector: Annotated[str, typer.Option(help="What stands between the two, drawn anew.")] = "mlp2x",
    vision_feature_layer: Annotated[
        int | None, typer.Option(show_default="-2", help="The encoder's layer whose output is taken; -1 is the last.")
    ] = None,
    select: Annotated[
        Literal["default", "full"] | None, typer.Option(help="Without the class token, or all. Default: without.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the projector's weights.")] = 0,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="auto: the language model's.")
    ] = "auto",
) -> None:
    """Write a new LLaVA-style model from a vision encoder and a language model; its projector is to be trained."""
    from opsin_server.compose.command import Request
    from opsin_server.compose.command import compose as write

    choices = Request(vision, language, out, fusion, projector, vision_feature_layer, select, seed, dtype)
    typer.echo(write(choices))


@app.command(name="backup", short_help="Write all that lasts to one file.")
@takes(STORED)
def back_up(
    out: Annotated[Path, typer.Argument(show_default=False, help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
    **given: Any,
) -> None:
    """Write database and files to one tar file, of one moment, whether or not a server runs."""
    from opsin_server.storage.backup import backup

    typer.echo(backup(build(StorageConfig, given, STORED, {}), out, force=force))


@app.command(name="restore", short_help="Read back what `opsin backup` wrote.")
@takes(STORED)
def read_back(
    source: Annotated[Path, typer.Argument(show_default=False, exists=True, dir_okay=False, help="The file.")],
    **given: Any,
) -> None:
    """Read a backup into a data directory or database in which there is nothing yet. No server may run there."""
    from opsin_server.storage.restore import restore

    typer.echo(restore(build(StorageConfig, given, STORED, {}), source))


@app.command(short_help="Write a model directory whose weights hold an adapter.")
def merge(
    base: Annotated[Path, typer.Argument(show_default=False, help="The model's checkpoint directory.")],
    adapter: Annotated[Path, typer.Argument(show_default=False, help="An adapter's directory, as PEFT saves it.")],
    out: Annotated[Path, typer.Argument(show_default=False, help="The directory to write: a new or an empty one.")],
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Merge over quantized weights, by the numbers that they stand for.")
    ] = False,
) -> None:
    """Write a model directory whose weights hold an adapter, under the base's own names and in its types."""
    from opsin_server.merge.command import Request
    from opsin_server.merge.command import merge as write

    typer.echo(write(Request(base, adapter, out, dequantize)))


@app.command(short_help="Write a model directory in fewer bits.")
def quantize(
    model: Annotated[Path, typer.Argument(show_default=False, help="The model's checkpoint directory.")],
    out: Annotated[Path, typer.Argument(show_default=False, help="The directory to write: a new or an empty one.")],
    scheme: Annotated[Scheme, typer.Option(show_default=False, help="In what weights are written.")],
    quantize_vision: Annotated[
        bool, typer.Option("--quantize-vision", help="The vision tower and the projector too.")
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Rows as of a training file, by which weights are rounded."),
    ] = None,
    calibration_rows: Annotated[int, typer.Option(min=1, help="Rows of it that are read.")] = 128,
    calibration_tokens: Annotated[int, typer.Option(min=1, help="Tokens of these rows, at most.")] = 32_768,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Run both models, so that the report says what was lost.")
    ] = True,
) -> None:
    """Write a model directory with its linears in fewer bits, as compressed-tensors: this server and transformers
    read it. The output head and the embedding stay as they are. A report beside the weights says what was lost."""
    from opsin_server.quantize.command import Request
    from opsin_server.quantize.command import quantize as write
    from opsin_server.quantize.rows import Limits

    limits = Limits(calibration_rows, calibration_tokens)
    typer.echo(write(Request(model, out, scheme, quantize_vision, calibrate, limits, compare)))


def main() -> None:
    streams.prepare()
    code = 0
    try:
        app()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except (ConfigError, OpsinError, SpecError, OSError) as error:
        code = 1
        with suppress(OSError, SystemExit):  # (rich leaves when nobody reads)
            said = f"opsin: {_sentence(error)}"
            Console(stderr=True).print(said, style="red", highlight=False, soft_wrap=True, markup=False)
    printer.drain()
    streams.leave(code)


def _sentence(error: Exception) -> str:
    """A system's error without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
