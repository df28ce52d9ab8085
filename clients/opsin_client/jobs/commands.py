"""The command line of `opsin jobs`. Nothing here connects to anything before a command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin_client.sentences import sentences
from opsin_client.server_options import DEFAULT_URL, Key, Url

if TYPE_CHECKING:
    import openai
    from openai.types.fine_tuning import FineTuningJob


Job = Annotated[str, typer.Argument(show_default=False, help="A job's id.")]

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Create, list, follow, stop and resume the fine-tuning jobs of a running server.",
)


@contextmanager
def _server(url: str, api_key: str) -> Iterator[openai.OpenAI]:
    from opsin_client.connect import checked_key, connect, full_url
    from opsin_client.jobs.stored_rows import StoredRowsError

    with sentences("opsin jobs", url, StoredRowsError), connect(full_url(url), checked_key(api_key)) as client:
        yield client


@app.command("list")
def list_jobs(
    most: Annotated[int, typer.Option("--limit", min=1, help="How many of the newest.")] = 20,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """The newest jobs first."""
    from itertools import islice

    from opsin_client.jobs.tables import show_jobs

    with _server(url, api_key) as client:
        show_jobs(list(islice(client.fine_tuning.jobs.list(limit=min(most, 100)), most)))


@app.command()
def create(
    model: Annotated[str, typer.Option(show_default=False, help="What is trained.")],
    from_stored: Annotated[
        list[str],
        typer.Option(
            show_default=False,
            metavar="metadata.KEY=VALUE|model=NAME",
            help="Which of the answers that the server keeps are the rows. May be repeated.",
        ),
    ],
    suffix: Annotated[str | None, typer.Option(show_default=False, help="A part of the new model's name.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, show_default=False, help="Default: the server decides.")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """A job that trains on answers that the server keeps (opsin serve --store)."""
    from opsin_client.jobs.stored_rows import read_wanted, upload_rows
    from opsin_client.say import print_line

    with _server(url, api_key) as client:
        file, rows, left_out = upload_rows(client, read_wanted(from_stored))
        print_line(f"{file} has {rows} rows; {left_out} answers were left out")
        numbers = {} if epochs is None else {"n_epochs": epochs}
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": numbers}}
        given: dict[str, Any] = {} if suffix is None else {"suffix": suffix}
        _said(client.fine_tuning.jobs.create(model=model, training_file=file, method=method, **given))


@app.command()
def show(job: Job, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """A job with its checkpoints."""
    from opsin_client.jobs.tables import show_job

    with _server(url, api_key) as client:
        found = client.fine_tuning.jobs.retrieve(job)
        show_job(found, client.fine_tuning.jobs.checkpoints.list(job))


@app.command()
def follow(job: Job, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """What happens, until the job has ended, and the curve of its loss. Ends with 1 unless it has succeeded."""
    from rich.console import Console

    from opsin_client.jobs.follow import follow as follow_job

    with _server(url, api_key) as client:
        found = follow_job(client, job, Console())
    raise typer.Exit(0 if found.status == "succeeded" else 1)


@app.command()
def cancel(job: Job, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """Ends a job for good; its checkpoints stay."""
    with _server(url, api_key) as client:
        _said(client.fine_tuning.jobs.cancel(job))


@app.command()
def pause(job: Job, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """Stops a job after its step; resume goes on from there."""
    with _server(url, api_key) as client:
        _said(client.fine_tuning.jobs.pause(job))


@app.command()
def resume(job: Job, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """Goes on with a job that was paused."""
    with _server(url, api_key) as client:
        _said(client.fine_tuning.jobs.resume(job))


def _said(job: FineTuningJob) -> None:
    from opsin_client.say import print_line

    print_line(f"{job.id} is {job.status}")
