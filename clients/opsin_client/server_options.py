"""Which server a command speaks to, as every command line has it."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000/v1"

Url = Annotated[str, typer.Option(envvar="OPENAI_BASE_URL", help="The server.")]
Key = Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="What the server asks for.")]
