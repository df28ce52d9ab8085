"""The options of a configuration struct: as a command's parameters, and as keys of a TOML file."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

import msgspec
import msgspec.structs
import typer

from opsin_server.errors import ConfigError
from opsin_server.option import OptionFields
from opsin_server.option_words import described, inside

UNITS = {"": 1, "B": 1, "K": 10**3, "KB": 10**3, "KIB": 2**10, "M": 10**6, "MB": 10**6, "MIB": 2**20}
UNITS |= {"G": 10**9, "GB": 10**9, "GIB": 2**30, "T": 10**12, "TB": 10**12, "TIB": 2**40}
MAX_FILE_BYTES = 2**20

Config = TypeVar("Config", bound=msgspec.Struct)


class WrongOption(ConfigError):
    """field: the option whose value is none of those that it may have."""

    def __init__(self, field: Field) -> None:
        super().__init__(f"--{field.name} must be {field.words}")
        self.field = field


@dataclass(frozen=True)
class Field:
    """One option: where it stands in the struct, what it is called, and what it may be. kind: without None. words: what
    it may be, for people."""

    path: tuple[str, ...]
    name: str
    kind: Any
    least: float | None
    words: str
    default: Any
    help: str
    metavar: str | None
    commas: bool

    @property
    def parameter(self) -> str:
        return self.name.replace("-", "_")

    @property
    def repeats(self) -> bool:
        return get_origin(self.kind) is tuple and not self.commas


def fields_of(struct: type[msgspec.Struct], path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Every option of a struct, and then of the structs in it."""
    hints = get_type_hints(struct, include_extras=True)
    inner = []
    for field in msgspec.structs.fields(struct):
        where = (*path, field.name)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            inner.append((field.type, where))
            continue
        notes = getattr(hints[field.name], "__metadata__", ())
        for note in notes:
            if isinstance(note, msgspec.Meta) and note.extra and "option" in note.extra:
                said: OptionFields = note.extra["option"]
                kind, bounds = inside(hints[field.name])
                least = next((bound.ge for bound in bounds if bound.ge is not None), None)
                name = said.name or field.name.replace("_", "-")
                words = "a size, like 4GiB" if said.metavar == "SIZE" else described(hints[field.name])
                help_ = note.description or ""
                yield Field(where, name, kind, least, words, field.default, help_, said.metavar, said.commas)
    for nested, where in inner:
        yield from fields_of(nested, where)


# ------------------------------------------------------------------------------------------ the command line


def takes(fields: Iterable[Field]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command, whose last parameter is `**given`, an option for each field. What is not given is not in it."""
    fields = list(fields)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        hints = get_type_hints(command, include_extras=True)
        own = [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

        def run(**given: Any) -> None:
            command(**{name: value for name, value in given.items() if value is not None})

        run.__doc__, run.__name__ = command.__doc__, command.__name__
        run.__signature__ = inspect.Signature([*own, *map(_parameter, fields)])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        return run

    return decorate


def _parameter(field: Field) -> inspect.Parameter:
    flags = [f"--{field.name}"]
    if field.kind is bool and field.default is True:
        flags = [f"--{field.name}/--no-{field.name}"]
    kind: Any = list[str] if field.repeats else str if field.commas or field.metavar == "SIZE" else field.kind
    option = typer.Option(
        *flags,
        metavar=field.metavar or ("TEXT" if field.repeats else None),
        min=field.least if kind in (int, float) else None,
        help=f"{field.help}{' May be repeated.' if field.repeats else ''}{_default(field)}",
        show_default=False,
    )
    return inspect.Parameter(
        field.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _default(field: Field) -> str:
    """Said in the help, unless it is that there is none."""
    if field.default in (None, "", (), False, msgspec.NODEFAULT):
        return ""
    if field.kind is bool:
        return f" Default: --{field.name}."
    if field.metavar == "SIZE" and field.default % 2**20 == 0:
        return f" Default: {field.default // 2**20}MiB."
    return f" Default: {field.default}."


# ------------------------------------------------------------------------------------------ values to a struct


def size(text: str | int) -> int:
    """ "512MiB", "4 GB" or a plain count of bytes. Raises ConfigError."""
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS:
        raise ConfigError(f"{text!r} is no size: write 4GiB, 512MiB, 20MB or a number of bytes")
    return int(float(found[1]) * UNITS[found[2].upper()])


def read_config_file(path: Path, fields: Iterable[Field]) -> dict[str, Any]:
    """A TOML file's values by parameter. Its keys are the options' names. Raises ConfigError for an unknown one."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"--config {path} has {path.stat().st_size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from None
    known = {field.parameter for field in fields} | {"model"}
    found = {key.replace("-", "_"): value for key, value in document.items()}
    if unknown := [key for key in document if key.replace("-", "_") not in known]:
        raise ConfigError(f"--config {path}: there is no option {', '.join(unknown)}")
    if not isinstance(found.get("model", ""), str):
        raise ConfigError(f"--config {path}: model is {found['model']!r}; write a directory's path in quotes")
    return found


def build(struct: type[Config], given: Mapping[str, Any], fields: Iterable[Field], fixed: Mapping[str, Any]) -> Config:
    """given: values by parameter. fixed: what stands beside them in the struct. Raises ConfigError, naming the flag."""
    document: dict[str, Any] = _copied(fixed)
    by_path = {}
    for field in fields:
        by_path[".".join(field.path)] = field
        if field.parameter not in given:
            continue
        place = document
        for name in field.path[:-1]:
            place = place.setdefault(name, {})
        place[field.path[-1]] = _value(field, given[field.parameter])
    try:
        return msgspec.convert(document, struct)
    except msgspec.ValidationError as error:  # which names Python's types
        what, _, where = str(error).partition(" - at `$.")
        found = by_path.get(re.sub(r"\[.*", "", where.rstrip("`")))
        raise (ConfigError(what) if found is None else WrongOption(found)) from None


def _value(field: Field, value: Any) -> Any:
    if field.metavar == "SIZE" and isinstance(value, str):  # (msgspec names what else it is)
        try:
            return size(value)
        except ConfigError as error:
            raise ConfigError(f"--{field.name}: {error}") from None
    if field.commas and isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if field.repeats and isinstance(value, str):
        return [value]
    return value


def _copied(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}
