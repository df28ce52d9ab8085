"""What `opsin finetune` does: prepares the files, trains in an engine process, and writes a PEFT directory."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from opsin_client.plot import plot
from opsin_plugins.loading.open_model import open_model
from opsin_server.adapters.base_model import AdapterLimits, BaseModel
from opsin_server.atomic_directory import whole_or_nothing
from opsin_server.config import EngineConfig
from opsin_server.errors import ConfigError
from opsin_server.finetune.config import FinetuneConfig
from opsin_server.finetune.model_card import model_card
from opsin_server.finetune.progress import RunProgress
from opsin_server.ipc.client import EngineClient
from opsin_server.ipc.training_events import TrainingEnded
from opsin_server.ipc.training_run import TrainingRun
from opsin_server.ipc.training_settings import Method, TrainingSettings
from opsin_server.jobs.prepare import Role, Source, prepare
from opsin_server.jobs.prepared import Prepared
from opsin_server.jobs.prepared_data import PreparedData
from opsin_server.jobs.training_options import planned_steps, settings_of, stopped_early
from opsin_server.jobs.what_trains import chosen_modules
from opsin_server.served_name import model_name
from opsin_server.text.encode_prompt import PromptEncoder, read_encoder

MICRO_BATCH_TOKENS = 2048  # nobody waits for a token meanwhile
SHOWN_FAULTS = 20  # of rows that are left out
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
INTERRUPTED = 130


@dataclass(frozen=True)
class Request:
    """valid: None trains without. out: the directory to write. resume: of a run that was interrupted."""

    train: Path
    valid: Path | None
    out: Path
    resume: bool


@dataclass(frozen=True)
class _Sources:
    """version: of the model, so that a file is prepared anew for another one."""

    encoder: PromptEncoder
    engine: EngineConfig
    config: FinetuneConfig
    version: str

    def prepared(self, file: Path, out: Path, console: Console, role: Role = "training") -> Prepared:
        source = Source(
            self.encoder,
            self.config.data,
            version=self.version,
            max_image_tokens=self.engine.max_image_tokens,
            media=self.config.media,
            base=file.absolute().parent,
            role=role,
        )
        with console.status(f"reading {file}") as status:
            return prepare(file, source, out, lambda line: status.update(f"reading {file}, line {line:,}"))


def finetune(request: Request, engine: EngineConfig, config: FinetuneConfig) -> int:
    """Returns the exit status. Raises ConfigError, DataRefused, SpecError or OSError."""
    console = Console()
    work = request.out.absolute().parent / f".{request.out.absolute().name}.run"
    _check_places(request, work)
    if request.valid is None and (config.training.eval_steps or config.training.early_stopping_patience):
        raise ConfigError("--eval-steps and --early-stopping-patience need rows to validate with (--valid)")
    model = open_model(Path(engine.model), engine.plugins, engine.family_options(), engine.tower_file())
    modules = chosen_modules(config.what, model)
    source = _Sources(
        read_encoder(engine), engine, config, BaseModel(model, AdapterLimits(config.training.rank)).shape_digest
    )
    with ExitStack() as stack:
        stack.callback(_forget_unless_begun, work)
        train = source.prepared(request.train, work / "train", console)
        stack.callback(train.close)
        valid = None
        if request.valid is not None:
            valid = source.prepared(request.valid, work / "valid", console, "validation")
            stack.callback(valid.close)
            if valid.kind != train.kind:
                raise ConfigError(f"--valid holds {valid.kind} rows, and --train {train.kind} ones")
        method: Method = "supervised" if train.kind == "supervised" else "dpo"
        full = config.what.finetune_projector == "full"
        settings = settings_of(config.training, modules, len(train), method, MICRO_BATCH_TOKENS, full)
        _say_plan(console, settings, train, valid)
        progress = RunProgress(console, planned_steps(settings, len(train)))
        run = TrainingRun("finetune", settings, work / "checkpoints", PreparedData(train, valid), progress.hear)
        end = asyncio.run(_train(run, engine, request.resume, progress))
        if end.status != "succeeded":
            return _unfinished(console, end, request)
        card = model_card(
            model_name(Path(engine.model)),
            settings,
            train.report,
            None if valid is None else valid.report,
            progress.done,
            progress.evaluated,
            end,
        )
        _write(Path(end.checkpoint), request.out, card)
        if early := stopped_early(settings, len(train), end.step):
            console.print(early, highlight=False, soft_wrap=True)
    for line in plot([step.loss for step in progress.done]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{request.out}: a PEFT adapter after {end.step:,} steps", highlight=False, soft_wrap=True)
    shutil.rmtree(work, ignore_errors=True)
    return 0


def _forget_unless_begun(work: Path) -> None:
    """What lies beside --out is of use only to --resume."""
    if not any((work / "checkpoints").glob("*")):
        shutil.rmtree(work, ignore_errors=True)


def _check_places(request: Request, work: Path) -> None:
    if request.out.exists() and not (request.out.is_dir() and not any(request.out.iterdir())):
        raise ConfigError(f"--out {request.out} is there already: give a new directory")
    if not request.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {request.out}: {request.out.absolute().parent} is no directory")
    if request.resume and not (work / "checkpoints").is_dir():
        raise ConfigError(f"--resume: there is no run to go on with in {work}")
    if not request.resume and (work / "checkpoints").is_dir():
        raise ConfigError(f"{work} holds a run that was interrupted: --resume goes on with it; or remove it")


def _say_plan(console: Console, settings: TrainingSettings, train: Prepared, valid: Prepared | None) -> None:
    report = train.report
    rows = (
        f"{report.rows:,} rows, {report.images:,} images, {report.tokens:,} tokens, {report.labels:,} of them learned"
    )
    tested = "" if valid is None else f"; {len(valid):,} rows to validate with"
    console.print(f"training on {rows}{tested}", highlight=False, soft_wrap=True)
    for line in report.surprises(SHOWN_FAULTS):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"{len(settings.modules):,} modules, rank {settings.rank}", highlight=False, soft_wrap=True)


async def _train(run: TrainingRun, engine: EngineConfig, resume: bool, progress: RunProgress) -> TrainingEnded:
    """Ctrl-C and SIGTERM end the run at the next step's end, with a checkpoint."""
    client = EngineClient(engine)
    await client.start()
    try:
        await client.wait_ready()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, run.stop, "paused")
        client.train(run, resume)
        with progress.bar:
            return await run.finished()
    finally:
        await client.stop()


def _unfinished(console: Console, end: TrainingEnded, request: Request) -> int:
    if end.status == "paused":
        console.print(f"paused after step {end.step:,}; --resume goes on", highlight=False)
        return INTERRUPTED
    raise ConfigError(f"training failed after step {end.step:,}: {end.error}" if end.step else end.error)


def _write(checkpoint: Path, out: Path, card: str) -> None:
    with whole_or_nothing(out.absolute()) as folder:
        for name in ADAPTER_FILES:
            shutil.copyfile(checkpoint / name, folder / name)
        (folder / "README.md").write_text(card)
        os.sync()
