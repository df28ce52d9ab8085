"""The command line of `opsin jobs`. Nothing here connects to anything before a command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from opsin_client.server_options import DEFAULT_URL, Key, Url

if TYPE_CHECKING:
    import openai
    from openai.types.fine_tuning import FineTuningJob


Job = Annotated[str, typer.Argument(show_default=False, help="A job's id.")]

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, follow, stop and resume the fine-tuning jobs of a running server.",
)


@contextmanager
def _server(url: str, api_key: str) -> Iterator[openai.OpenAI]:
    """Whatever fails in here ends the command with one sentence."""
    import httpx2
    import openai

    from opsin_client.connect import BadKeyError, ProxyError, checked_key, connect, full_url
    from opsin_client.say import say

    try:
        with connect(full_url(url), checked_key(api_key)) as client:
            yield client
        return
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        sentence = str(body.get("message") or error)
    except openai.APIConnectionError as error:
        sentence = f"{url} does not answer: {error.__cause__ or error}"
    except (BadKeyError, ProxyError, httpx2.InvalidURL) as error:
        sentence = str(error)
    say(f"opsin jobs: {sentence}", style="red")
    raise typer.Exit(1)


@app.command("list")
def list_jobs(
    most: Annotated[int, typer.Option("--limit", min=1, help="How many of the newest.")] = 20,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """The newest jobs first."""
    from itertools import islice

    from rich.console import Console

    from opsin_client.jobs.tables import show_jobs

    with _server(url, api_key) as client:
        show_jobs(Console(), list(islice(client.fine_tuning.jobs.list(limit=min(most, 100)), most)))


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
