"""The command line of `opsin batches`. Nothing here connects to anything before a command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin_client.sentences import sentences
from opsin_client.server_options import DEFAULT_URL, Key, Url

if TYPE_CHECKING:
    import openai

Batch = Annotated[str, typer.Argument(show_default=False, help="A batch's id.")]
Out = Annotated[
    Path | None, typer.Option("--out", dir_okay=False, show_default=False, help="Where the answers are written.")
]

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Create, list, follow and cancel batches of requests of a running server.",
)


@contextmanager
def _server(url: str, api_key: str) -> Iterator[openai.OpenAI]:
    from opsin_client.connect import checked_key, connect, full_url

    with sentences("opsin batches", url), connect(full_url(url), checked_key(api_key)) as client:
        yield client


@app.command()
def create(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, show_default=False, help="JSON lines.")],
    endpoint: Annotated[str, typer.Option(help="Whose requests they are.")] = "/v1/chat/completions",
    follow: Annotated[bool, typer.Option("--follow", help="Until the batch has ended.")] = False,
    out: Out = None,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """Uploads a file of requests and has them run. --out follows, too."""
    from opsin_client.say import print_line

    with _server(url, api_key) as client:
        with file.open("rb") as opened:
            uploaded = client.files.create(file=(file.name, opened), purpose="batch")
        batch = client.batches.create(
            input_file_id=uploaded.id,
            endpoint=endpoint,  # type: ignore[arg-type]
            completion_window="24h",
        )
        print_line(batch.id)
        if follow or out is not None:
            _follow(client, batch.id, out)


@app.command("list")
def list_batches(
    most: Annotated[int, typer.Option("--limit", min=1, help="How many of the newest.")] = 20,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """The newest batches first."""
    from itertools import islice

    from opsin_client.batches.tables import show_batches

    with _server(url, api_key) as client:
        show_batches(list(islice(client.batches.list(limit=min(most, 100)), most)))


@app.command()
def show(batch: Batch, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """A batch, with the faults of its file."""
    from opsin_client.batches.tables import show_batch

    with _server(url, api_key) as client:
        show_batch(client.batches.retrieve(batch))


@app.command()
def follow(batch: Batch, out: Out = None, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """How far it is, until it has ended. Ends with 1 unless it has completed."""
    with _server(url, api_key) as client:
        _follow(client, batch, out)


@app.command()
def cancel(batch: Batch, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """Ends a batch; what was answered is kept."""
    from opsin_client.say import print_line

    with _server(url, api_key) as client:
        found = client.batches.cancel(batch)
        print_line(f"{found.id} is {found.status}")


def _follow(client: openai.OpenAI, batch_id: str, out: Path | None) -> None:
    from rich.console import Console

    from opsin_client.batches.follow import follow as follow_batch
    from opsin_client.batches.tables import show_batch

    batch = follow_batch(client, batch_id, Console())
    show_batch(batch)
    if out is not None and batch.output_file_id is not None:
        with client.files.with_streaming_response.content(batch.output_file_id) as answers:
            answers.stream_to_file(out)
    raise typer.Exit(0 if batch.status == "completed" else 1)
