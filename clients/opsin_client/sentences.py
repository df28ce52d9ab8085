"""How a command that speaks to a server ends when something fails: with one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import openai

INTERRUPTED = 130  # as shells have it


@contextmanager
def sentences(command: str, where: str, *own: type[Exception], stopped: str = "stopped") -> Iterator[None]:
    """Whatever fails in here ends the command with one sentence, the server's own where it has refused something.
    where: who does not answer. own: the command's exceptions, which are sentences already. stopped: what is said where
    somebody stops it."""
    import httpx2  # (with the SDK most of a second, which only a command that runs waits for)
    import openai

    from opsin_client.connect import BadKeyError, ProxyError
    from opsin_client.say import say
    from opsin_client.visible import visible

    code = 1
    try:
        yield
        return
    except KeyboardInterrupt:
        sentence, code = stopped, INTERRUPTED
    except own as error:
        sentence = str(error)
    except (BadKeyError, ProxyError, httpx2.InvalidURL) as error:
        sentence = str(error)
    except openai.APIStatusError as error:
        sentence = refusal(error)
    except openai.APIConnectionError as error:
        sentence = f"{where} does not answer: {error.__cause__ or error}"
    except OSError as error:
        sentence = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    say(f"{command}: {visible(sentence)}", style="red")
    raise typer.Exit(code)


def refusal(error: openai.APIStatusError) -> str:
    """The server's own sentence, where it has sent one."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error)
