"""The command line. Nothing here imports torch: the engine's process does, and what `check` and `compose` call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from opsin_plugins.spec import SpecError
from opsin_server import __version__, printer, streams
from opsin_server.config import EngineConfig, ServerConfig
from opsin_server.embedded import MODEL
from opsin_server.errors import ConfigError
from opsin_server.names import readable

app = typer.Typer(
    rich_markup_mode=None,  # plain help: no column cuts a flag short
    help="Serve a vision-language model behind the OpenAI API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
UNITS = {"": 1, "B": 1, "K": 10**3, "KB": 10**3, "KIB": 2**10, "M": 10**6, "MB": 10**6, "MIB": 2**20}
UNITS |= {"G": 10**9, "GB": 10**9, "GIB": 2**30, "T": 10**12, "TB": 10**12, "TIB": 2**40}


def size(text: str | int) -> int:
    """ "512MiB", "4 GB" or a plain count of bytes."""
    if isinstance(text, int):  # a default
        return text
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS:
        raise typer.BadParameter(f"{text!r} is no size: write 4GiB, 512MiB, 20MB or a number of bytes")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _gpu(text: str) -> int:
    found = size(text)
    if found < 2**30:
        raise typer.BadParameter(f"{text!r} is {found:,} bytes: write 24GiB")
    return found


def _pairs(texts: list[str] | None) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"--model-option {text!r}: write NAME=VALUE")
        if found.setdefault(name, value) != value:
            raise typer.BadParameter(f"--model-option {name} is both {found[name]!r} and {value!r}")
    return tuple(found.items())


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
def serve(
    model: Annotated[
        Path, typer.Argument(show_default=False, help="A checkpoint directory; without one, the embedded opsin-mini.")
    ] = MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="What clients call the model; may be repeated. Default: the folder's name.")
    ] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="OPSIN_API_KEY", help="A key that clients must send; may be repeated.")
    ] = None,
    allow_remote_without_key: Annotated[
        bool, typer.Option(help="Listen beyond this machine although no key is set.")
    ] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="auto: float32 on a CPU, else 16 bit.")
    ] = "auto",
    quantize: Annotated[
        Literal["none", "int8"], typer.Option(help="Store linears as 8-bit rows (smaller, not faster).")
    ] = "none",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine on a CPU.")] = 1,
    max_context: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer. Default: the model's.")
    ] = None,
    max_sequences: Annotated[int, typer.Option(min=1, help="Requests computed at the same time.")] = 64,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens computed in one step. Default: 256 on a CPU, else 2048.")
    ] = None,
    kv_memory: Annotated[
        int | None,
        typer.Option(
            parser=size, metavar="SIZE", help="Keys and values. Default: what is needed, within a share of memory."
        ),
    ] = None,
    encoder_memory: Annotated[
        int | None,
        typer.Option(
            parser=size,
            metavar="SIZE",
            help="Visual tokens kept for pictures that come again. Default: 256MiB; for models that attend to pictures "
            "outside of the prompt up to 16 of the largest.",
        ),
    ] = None,
    max_image_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Visual tokens of one image, where the family can resize. Default: 8192, at most half of the context.",
        ),
    ] = None,
    prefix_cache: Annotated[bool, typer.Option(help="Keep the keys and values of prompts for prompts alike.")] = True,
    eager: Annotated[bool, typer.Option("--eager", help="On CUDA: launch decode steps anew, record none.")] = False,
    plugins: Annotated[
        str | None, typer.Option(help="Comma-separated names: the only plugins that may be used.")
    ] = None,
    model_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the model's family; may be repeated.")
    ] = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests in flight before new ones get 503.")] = 256,
    max_body_bytes: Annotated[
        int, typer.Option(parser=size, metavar="SIZE", show_default="64MiB", help="A request's body.")
    ] = 64 * 2**20,
    max_image_bytes: Annotated[
        int, typer.Option(parser=size, metavar="SIZE", show_default="20MiB", help="One image file.")
    ] = 20 * 2**20,
    max_image_pixels: Annotated[int, typer.Option(min=1, help="Pixels of one image.")] = 40_000_000,
    max_request_pixels: Annotated[int, typer.Option(min=1, help="Pixels of all images of a request.")] = 160_000_000,
    max_images: Annotated[int, typer.Option(min=0, help="Images of a request.")] = 32,
    media_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to fetch one image.")] = 10.0,
    media_allow: Annotated[
        list[str] | None, typer.Option(metavar="HOST|CIDR", help="A private address that images may come from.")
    ] = None,
    drain_timeout: Annotated[float, typer.Option(min=0, help="Seconds that running answers get on SIGTERM.")] = 30.0,
) -> None:
    """Serve a checkpoint directory (safetensors, config.json, tokenizer.json) until SIGTERM."""
    from opsin_server.launch import run

    config = ServerConfig(
        engine=EngineConfig(
            model=str(model),
            device=device,
            dtype=dtype,
            quantize=quantize,
            threads=threads,
            max_context=max_context,
            max_sequences=max_sequences,
            max_batch_tokens=max_batch_tokens,
            kv_memory=kv_memory,
            encoder_memory=encoder_memory,
            prefix_cache=prefix_cache,
            graphs=not eager,
            plugins=None if plugins is None else tuple(name.strip() for name in plugins.split(",")),
            max_image_tokens=max_image_tokens,
            model_options=_pairs(model_option),
        ),
        host=host,
        port=port,
        served_names=tuple(served_model_name or ()),
        api_keys=tuple(api_key or ()),
        allow_remote_without_key=allow_remote_without_key,
        drain_timeout=drain_timeout,
        max_body_bytes=max_body_bytes,
        max_queue=max_queue,
        max_image_bytes=max_image_bytes,
        max_image_pixels=max_image_pixels,
        max_images=max_images,
        max_request_pixels=max_request_pixels,
        media_timeout=media_timeout,
        media_allow=tuple(media_allow or ()),
    )
    printer.install()
    run(config)
    printer.drain()
    os._exit(0)  # a thread that waits for a name server which never answers must not keep the process


@app.command(short_help="Will a checkpoint serve, and what does it take?")
def check(
    model: Annotated[Path, typer.Argument(show_default=False, help="A checkpoint directory.")],
    gpu: Annotated[
        int | None, typer.Option(parser=_gpu, metavar="SIZE", help="A GPU's memory, as 24GiB. Default: this machine.")
    ] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="As for serve.")] = "auto",
    quantize: Annotated[Literal["none", "int8"], typer.Option(help="As for serve.")] = "none",
    max_context: Annotated[int | None, typer.Option(min=2, help="As for serve.")] = None,
    max_sequences: Annotated[int, typer.Option(min=1, help="As for serve.")] = 64,
    max_image_tokens: Annotated[int | None, typer.Option(min=1, help="As for serve.")] = None,
    model_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="As for serve.")] = None,
    plugins: Annotated[str | None, typer.Option(help="As for serve.")] = None,
) -> None:
    """Will it serve, and what does it take? Reads headers only, never weights."""
    from opsin_server.banner import outlook_rows, show
    from opsin_server.engine.examine import check_directory
    from opsin_server.prompt.encode import read_encoder

    config = EngineConfig(
        model=str(model),
        dtype=dtype,
        quantize=quantize,
        max_context=max_context,
        max_sequences=max_sequences,
        max_image_tokens=max_image_tokens,
        model_options=_pairs(model_option),
        plugins=None if plugins is None else tuple(name.strip() for name in plugins.split(",")),
    )
    outlook = check_directory(config, gpu)
    show(Console(), outlook_rows(outlook))
    read_encoder(config)  # tokenizer and chat template, too
    raise typer.Exit(1 if outlook.refusal else 0)


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
    from opsin_server.tables import plugin_table

    allow = None if names is None else [name.strip() for name in names.split(",")]
    table, healthy = plugin_table(allow)
    Console().print(table)
    raise typer.Exit(0 if healthy else 1)


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
    from opsin_server.tables import doctor_table

    table, healthy = doctor_table()
    Console().print(table)
    raise typer.Exit(0 if healthy else 1)


@app.command()
def compose(
    out: Annotated[Path, typer.Argument(show_default=False, help="The directory to write: a new or an empty one.")],
    vision: Annotated[Path, typer.Option(help="A CLIP's or SigLIP's checkpoint directory.")],
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


def main() -> None:
    streams.prepare()
    code = 0
    try:
        app()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except (ConfigError, SpecError, OSError) as error:
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
