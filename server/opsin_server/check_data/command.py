"""What `opsin check-data` does: the file is prepared as a job would prepare it, told of, and thrown away."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
from rich.console import Console

from opsin_client.visible import visible
from opsin_server.check_data.config import CheckConfig
from opsin_server.check_data.learned import shown
from opsin_server.check_data.report import as_json, report_rows
from opsin_server.config import EngineConfig
from opsin_server.console import show
from opsin_server.errors import BadRequest, ConfigError
from opsin_server.jobs.prepare import DataRefused, Source, prepare, refusal
from opsin_server.jobs.prepared import Prepared, Report
from opsin_server.text.encode_prompt import PromptEncoder, read_encoder


def check_data(file: Path, engine: EngineConfig, config: CheckConfig, examples: int, *, json: bool) -> bool:
    """Prints what is in the file; paths in it are read from its own folder. examples: rows to show. Returns whether the
    file would be trained on. Raises ConfigError, SpecError or OSError."""
    console = Console()
    encoder = read_encoder(engine)
    with tempfile.TemporaryDirectory(prefix="opsin-check-data-") as folder:
        try:
            made, report = _prepared(file, _source(file, encoder, engine, config), Path(folder) / "data", console)
        except BadRequest as error:
            raise ConfigError(error.message) from None
        why = refusal(report, config.data)
        if json:
            console.print(as_json(report, why), soft_wrap=True, highlight=False, markup=False)
            return not why
        show(console, [*report_rows(report), ("verdict", visible(why) or "it would be trained on")])
        if made is not None:
            _show_examples(console, made, encoder, examples)
            made.close()
    return not why


def _source(file: Path, encoder: PromptEncoder, engine: EngineConfig, config: CheckConfig) -> Source:
    """With all good rows, whatever the policy for wrong ones is: the verdict is found afterwards."""
    lenient = msgspec.structs.replace(config.data, on_bad_row="skip", min_rows=1)
    base = file.resolve().parent
    return Source(encoder, lenient, max_image_tokens=engine.max_image_tokens, media=config.media, base=base)


def _prepared(file: Path, source: Source, out: Path, console: Console) -> tuple[Prepared | None, Report]:
    with console.status("reading") as status:
        try:
            made = prepare(file, source, out, lambda line: status.update(f"line {line:,}"))
        except DataRefused as refused:
            return None, refused.report
    return made, made.report


def _show_examples(console: Console, made: Prepared, encoder: PromptEncoder, count: int) -> None:
    colour = console.is_terminal and not console.no_color
    for index in range(min(count, len(made))):
        rows = (made.row(index),) if made.kind == "supervised" else made.pair(index)
        for row in rows:
            learned = f"{int(row.labels.sum())} of {len(row.ids)} tokens are learned"
            console.print(f"\nline {made.facts.line[index]}: {learned}", highlight=False, soft_wrap=True)
            console.print(shown(row, encoder.tokenizer, colour), soft_wrap=True)
