"""API keys as an operator gives them: options, or variables of the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsin_server.errors import ConfigError

ONE, SEVERAL = "OPSIN_API_KEY", "OPSIN_API_KEYS"


def read_keys(options: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The options or else the variables: one holds one key, the other several with commas between them."""
    if options:
        return tuple(line(key) for key in options)
    found = [line(environment[ONE])] if ONE in environment else []
    if SEVERAL in environment:
        found += [key.strip() for key in environment[SEVERAL].split(",")]
    return tuple(found)


def line(text: str) -> str:
    """Without the line end that files, and so Kubernetes' secrets, end with."""
    return text.rstrip("\r\n")


def check_keys(keys: Sequence[str]) -> None:
    """Raises ConfigError for a key that guards nothing or that no client could send. Keys are not repeated."""
    where = f"--api-key, {ONE} or {SEVERAL}"
    for number, key in enumerate(keys, 1):
        which = "The key" if len(keys) == 1 else f"Key {number} of {len(keys)}"
        if not key.strip():
            raise ConfigError(f"{which} of {where} is empty: a key that anybody could send guards nothing")
        if not all("!" <= character <= "~" for character in key):
            raise ConfigError(
                f"{which} of {where} holds a blank, a line end or a character outside of ASCII, which clients cannot "
                f"send as it is ({ONE} is one key; {SEVERAL} holds several, with commas between them)"
            )
