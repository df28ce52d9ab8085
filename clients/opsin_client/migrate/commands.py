"""The command line of `opsin migrate`. Nothing here connects to anything before a command runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin_client.migrate.problems import MigrateError
from opsin_client.sentences import sentences
from opsin_client.server_options import DEFAULT_URL, Key, Url

if TYPE_CHECKING:
    import openai

    from opsin_client.migrate.folder import SnapshotFolder

GIB = 2**30

Folder = Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="A snapshot's directory.")]
Jobs = Annotated[list[str] | None, typer.Option("--job", show_default=False, help="Only this job; may be repeated.")]

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Move fine-tuning jobs here from OpenAI, or any server with its API: save, make again, compare.",
)


@contextmanager
def _sentences(where: str) -> Iterator[None]:
    with sentences("opsin migrate", where, MigrateError, stopped="stopped; run it again to go on"):
        yield


@contextmanager
def _target(url: str, api_key: str) -> Iterator[openai.OpenAI]:
    from opsin_client.connect import checked_key, connect, full_url

    with _sentences(url), connect(full_url(url), checked_key(api_key)) as client:
        yield client


@app.command()
def snapshot(
    out: Annotated[Path, typer.Option(show_default=False, help="The directory to write, or to go on with.")],
    source: Annotated[
        str, typer.Option("--from", metavar="URL", help="The API to read.")
    ] = "https://api.openai.com/v1",
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable with that API's key.")
    ] = "OPENAI_API_KEY",
    job: Jobs = None,
    questions: Annotated[
        int,
        typer.Option(min=0, help="That each old model is asked, of its validation file. They cost what chats cost."),
    ] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 512,
    max_file: Annotated[int, typer.Option(min=1, metavar="GIB", help="GiB of a file.")] = 8,
    max_total: Annotated[int, typer.Option(min=1, metavar="GIB", help="GiB of the directory.")] = 64,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Leave out what lies behind URLs in rows.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help="A host with a private address that pictures may be on."),
    ] = None,
) -> None:
    """Save an account's jobs, events, checkpoints, files, pictures, and its old models' answers. Run it again to go on
    where it stopped."""
    from opsin_client.migrate.folder import SnapshotFolder
    from opsin_client.migrate.pace import Pace
    from opsin_client.migrate.progress import Bars
    from opsin_client.migrate.snapshot import Snapshot, Wanted
    from opsin_client.migrate.source import Source
    from opsin_client.say import print_line

    wanted = Wanted(
        jobs=tuple(job or ()),
        questions=questions,
        most_tokens=max_tokens,
        most_file=max_file * GIB,
        pictures=not no_pictures,
        allow_hosts=tuple(allow_host or ()),
    )
    with _sentences(source), Bars() as bars:
        if key_env not in os.environ:
            bars.note(f"{key_env} is not set (--key-env): no key is sent")
        api = Source(source, os.environ.get(key_env, ""), Pace(said=bars.note))
        try:
            taken = Snapshot(api, SnapshotFolder(out, max_total * GIB), wanted, bars)
            taken.take()
        finally:
            api.close()
        print_line(f"{out}: {taken.counts}")


@app.command()
def create(
    folder: Folder,
    run: Annotated[bool, typer.Option("--run", help="Do it. Without it: say what would be done.")] = False,
    job: Jobs = None,
    model: Annotated[
        str | None, typer.Option(show_default=False, help="What to train. Default: the first that the server names.")
    ] = None,
    same_hyperparameters: Annotated[
        bool, typer.Option("--same-hyperparameters", help="As they were; else the server chooses for its model.")
    ] = False,
    alias_base: Annotated[
        bool, typer.Option("--alias-base", help="Also let the names of the models that were trained mean this one.")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """Make a snapshot's jobs again. What succeeds here answers to the old model's name."""
    from opsin_client.migrate.create import Maker, check_model, first_model, made_already, show_plan, to_make
    from opsin_client.migrate.plan import base_names, plan
    from opsin_client.migrate.progress import Bars
    from opsin_client.say import print_line
    from opsin_client.visible import visible

    with _target(url, api_key) as client:
        saved = _folder(folder)
        jobs, made = plan(saved, tuple(job or ())), made_already(client)
        known = {found.id for found in client.models.list()}
        if model is not None:
            check_model(model, known)
        show_plan(jobs, made, known)
        if left := 0 if job else len(saved.jobs()) - len(jobs):
            print_line(f"{left:,} of the snapshot's jobs did not succeed and are left out (--job names one)")
        todo = to_make(jobs, made, known)
        if not run:
            print_line(f"{len(todo):,} jobs would be made (--run makes them)")
            return
        with Bars() as bars:
            maker = Maker(client, saved, model or first_model(client), bars)
            for one in bars.over("making jobs", todo, len(todo)):
                print_line(f"{one.id} -> {maker.make(one, same_hyperparameters=same_hyperparameters)}")
            for name in sorted(base_names(jobs) - known) if alias_base else ():
                maker.make_alias(name)
                print_line(f"{visible(name)} means this server's model")
        print_line("opsin jobs list shows them; opsin jobs follow JOB follows one")


@app.command()
def compare(
    folder: Folder,
    job: Jobs = None,
    model: Annotated[
        str | None, typer.Option(show_default=False, help="What to ask. Default: what was made of the job.")
    ] = None,
    out: Annotated[Path | None, typer.Option(show_default="DIR/comparison.html", help="The page to write.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 512,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """Ask the new models what the old ones were asked, and say how they differ."""
    from opsin_client.migrate.compare import Comparison, new_jobs
    from opsin_client.migrate.page import page_of
    from opsin_client.migrate.plan import as_data_url, plan
    from opsin_client.migrate.progress import Bars
    from opsin_client.say import print_line

    with _target(url, api_key) as client:
        saved, page = _folder(folder), out or folder / "comparison.html"
        _check_page(page)
        answered = [one for one in plan(saved, tuple(job or ())) if (saved.job(one.id) / "answers.jsonl").is_file()]
        ends = {} if model is not None else new_jobs(client)
        found = []
        with Bars() as bars:
            comparison = Comparison(client, saved, max_tokens, bars)
            for one in answered:
                end = ends.get(one.id)
                new = model or (None if end is None else end.fine_tuned_model)
                if new is None:
                    bars.note(f"{one.id}: {f'{end.id} is {end.status}' if end else 'no job here was made of it'}")
                    continue
                found.append(comparison.compare(one.job, new))
                for name, value in found[-1].totals.rows():
                    print_line(f"  {name:<18} {value}")
        if not found:
            raise MigrateError("there is nothing to compare: no saved answers, or no new model")
        page.write_text(page_of(found, lambda link: as_data_url(saved, link)), encoding="utf-8")
        print_line(f"{page}")
        if failed := sum(one.totals.not_answered for one in found):
            raise MigrateError(f"{failed:,} questions were not answered; the page says why")


def _check_page(path: Path) -> None:
    """Raises MigrateError before anything is asked for a page that could not be written."""
    if path.is_dir():
        raise MigrateError(f"{path} is a directory: --out must name a file")
    if not path.parent.is_dir():
        raise MigrateError(f"{path.parent} is no directory: --out must name a file in one that is there")


def _folder(path: Path) -> SnapshotFolder:
    from opsin_client.migrate.folder import SnapshotFolder

    found = SnapshotFolder(path, 2**63)
    found.check()
    return found
