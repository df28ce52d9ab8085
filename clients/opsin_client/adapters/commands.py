"""The command line of `opsin adapters`. Nothing here connects to anything before a command runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin_client.server_options import DEFAULT_URL, Key, Url

if TYPE_CHECKING:
    from opsin_client.adapters.api import AdapterApi, Change

VERSION = re.compile(r"v?([1-9][0-9]{0,8})")

Json = Annotated[bool, typer.Option("--json", help="What the server says, as it says it.")]
Name = Annotated[str, typer.Argument(show_default=False, help="An adapter.")]

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Load, list, move and download the adapters of a running server.",
)


@contextmanager
def _server(url: str, api_key: str) -> Iterator[AdapterApi]:
    """Whatever fails in here ends the command with one sentence."""
    from opsin_client.adapters.api import AdapterApi
    from opsin_client.adapters.problems import AdapterCommandError
    from opsin_client.say import say

    try:
        api = AdapterApi(url, api_key)
        try:
            yield api
        finally:
            api.close()
    except AdapterCommandError as error:
        sentence = str(error)
    except UnicodeEncodeError as error:
        sentence = f"{error.object!a} holds bytes that are not UTF-8"
    except OSError as error:
        reason = error.strerror or str(error)
        sentence = f"{error.filename}: {reason}" if error.filename else reason
    else:
        return
    say(f"opsin adapters: {sentence}", style="red")
    raise typer.Exit(1)


@app.command("list")
def list_adapters(as_json: Json = False, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """All adapters, with their current versions."""
    from opsin_client.adapters.tables import show_adapters, show_json

    with _server(url, api_key) as api:
        adapters, raw = api.adapters()
        show_json(raw) if as_json else show_adapters(adapters)


@app.command()
def show(name: Name, as_json: Json = False, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """An adapter with all its versions."""
    from opsin_client.adapters.tables import show_adapter, show_json

    with _server(url, api_key) as api:
        adapter, raw = api.adapter(name)
        show_json(raw) if as_json else show_adapter(adapter)


@app.command()
def load(
    name: Annotated[str, typer.Argument(show_default=False, help="What to call it; a name that is known: a version.")],
    path: Annotated[str, typer.Argument(show_default=False, help="A directory as PEFT writes it, or an archive.")],
    on_server: Annotated[bool, typer.Option("--on-server", help="PATH lies in the server's --adapter-dir.")] = False,
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Leave the current version as it is.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even if it was trained on another base model.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """Bring an adapter to the server: upload it, or name a directory that the server has."""
    from opsin_client.adapters.progress import bar
    from opsin_client.adapters.upload import Upload

    with _server(url, api_key) as api:
        if on_server:
            version = api.load_path(name, path, promote=not no_promote, force=force)
        else:
            fields = {"name": name, "promote": _flag(not no_promote), "force": _flag(force)}
            upload = Upload(Path(path), fields)
            with bar("uploading", upload.length) as shown:
                version = api.upload(upload, shown.over(upload.chunks()))
        typer.echo(f"{version.id} {'is the current version' if version.current else 'is loaded, not promoted'}")
        for warning in version.warnings:
            typer.echo(f"note: {warning}")


@app.command()
def promote(
    name: Name,
    version: Annotated[str | None, typer.Argument(show_default=False, help="3, v3 or NAME@v3.")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """Make a version the current one, for all requests that come after."""
    name, number = _versioned(name, version)
    if number is None:
        raise typer.BadParameter("name the version: promote NAME 3")
    with _server(url, api_key) as api:
        typer.echo(_current(api.promote(name, number)))


@app.command()
def rollback(name: Name, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """Go back to the version that was current before."""
    with _server(url, api_key) as api:
        typer.echo(_current(api.roll_back(name)))


@app.command()
def pin(
    name: Name,
    off: Annotated[bool, typer.Option("--off", help="It may leave again.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """Keep the current version in a slot, whatever else is asked for."""
    with _server(url, api_key) as api:
        change = api.pin(name, not off)
        typer.echo(f"{change.id} is {'pinned' if change.pinned else 'not pinned'}")


@app.command()
def unload(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, show_default=False, help="Only this one.")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """Delete an adapter with all its versions, or one of them. Requests in flight go on."""
    name, number = _versioned(name, None if version is None else str(version))
    with _server(url, api_key) as api:
        api.unload(name, number)
        typer.echo(f"{name if number is None else f'{name}@v{number}'} is deleted")


@app.command()
def alias(
    name: Annotated[str, typer.Argument(metavar="ALIAS", show_default=False, help="What clients send.")],
    target: Annotated[str | None, typer.Argument(show_default=False, help="The base, NAME or NAME@v3.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="The alias means nothing any more.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """Make a string mean an adapter, one of its versions, or the base model; or move it there."""
    if (target is None) is not delete:
        raise typer.BadParameter("name a target, or say --delete")
    with _server(url, api_key) as api:
        if target is None:
            api.delete_alias(name)
            typer.echo(f"{name} is deleted")
        else:
            made = api.set_alias(name, target)
            typer.echo(f"{made.id} means {made.target}")


@app.command()
def aliases(as_json: Json = False, url: Url = DEFAULT_URL, api_key: Key = "none") -> None:
    """All aliases, and what they mean."""
    from opsin_client.adapters.tables import show_aliases, show_json

    with _server(url, api_key) as api:
        found, raw = api.aliases()
        show_json(raw) if as_json else show_aliases(found)


@app.command()
def download(
    name: Name,
    out: Annotated[str, typer.Argument(show_default=False, help="A tar to write; OUT/ is a directory of its files.")],
    version: Annotated[int | None, typer.Option(min=1, show_default="the current one")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = "none",
) -> None:
    """Write a version as it was loaded, for PEFT or another server."""
    from opsin_client.adapters.download import check_place, save
    from opsin_client.adapters.progress import bar

    name, number = _versioned(name, None if version is None else str(version))
    with _server(url, api_key) as api:
        check_place(out, force=force)
        with api.download(name, number) as chunks, bar("downloading", None) as shown:
            size = save(shown.over(chunks), out)
        typer.echo(f"{out}: {size:,} bytes")


def _versioned(name: str, version: str | None) -> tuple[str, int | None]:
    """("a@v3", None), ("a", "3"), ("a", "v3") and ("a", "a@v3") are all of a's version 3."""
    adapter, at, said = name.rpartition("@") if "@" in name else (name, "", "")
    numbers = {said} if at else set()
    if version is not None:
        numbers.add(version.removeprefix(f"{adapter}@"))
    found = {VERSION.fullmatch(number) for number in numbers}
    if None in found or len({match[1] for match in found if match}) > 1:
        raise typer.BadParameter(f"{' '.join(filter(None, (name, version)))} names no version: write {adapter} 3")
    return adapter, next((int(match[1]) for match in found if match), None)


def _current(change: Change) -> str:
    return f"{change.id}@v{change.current_version} is the current version"


def _flag(value: bool) -> str:
    return "true" if value else "false"
