"""What `opsin quantize` does: a checkpoint written with its linears in fewer bits, and measured against what it was."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from opsin_client.migrate.progress import Bars
from opsin_plugins.blocks.checkpoint import Checkpoint
from opsin_plugins.blocks.model import build_model
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.loading.open_model import OpenModel, open_model
from opsin_plugins.spec import SpecError
from opsin_server.atomic_directory import check_out, check_room, whole_or_nothing
from opsin_server.copy_files import copy_files
from opsin_server.errors import ConfigError
from opsin_server.quantize.calibrate import Calibration
from opsin_server.quantize.choose import chosen_keys, ignored
from opsin_server.quantize.compare import Compared, Comparison, layer_of
from opsin_server.quantize.loaded import Loaded, loaded
from opsin_server.quantize.report import TensorReport, report_of, summary
from opsin_server.quantize.rows import Limits, Rows, calibration_rows, sample_rows
from opsin_server.quantize.schemes import SCHEMES, Rounded, SchemeName
from opsin_server.quantize.write import configure, stored, write_report, write_shards
from opsin_server.served_name import model_name
from opsin_server.signals import signals_raise
from opsin_server.text.encode_prompt import PromptEncoder

NOT_ASKED = "--no-compare was given"


@dataclass(frozen=True)
class Request:
    """calibrate: a file of rows; None: the weights alone say how they are rounded. compare: whether the report says how
    far the models are from each other, too."""

    model: Path
    out: Path
    scheme: SchemeName
    vision: bool = False
    calibrate: Path | None = None
    limits: Limits = field(default_factory=Limits)
    compare: bool = True


@dataclass(frozen=True)
class _Run:
    """The model that is measured, and on what."""

    loaded: Loaded
    rows: Rows


def quantize(request: Request) -> str:
    """What was written, in lines for the operator. Raises SpecError or ConfigError, and then has written nothing."""
    out = request.out.resolve()
    check_out(out)
    model = open_model(request.model)
    tensors = model.files.tensors
    if request.model.is_file() or any(info.packing is not None for info in tensors.values()):
        raise ConfigError(f"{request.model} is quantized already: give the unquantized checkpoint")
    keys, group = _chosen(model, request)
    check_room(out, sum(path.stat().st_size for path in {info.file for info in tensors.values()}))
    with signals_raise(), Bars() as bars, ExitStack() as stack:  # rows lie in a folder that is to be removed
        job = _Job(request, model, keys, group, bars)
        run = job.opened(stack)
        known = {} if request.calibrate is None or isinstance(run, str) else job.calibrated(run)
        with whole_or_nothing(out) as folder:
            copy_files(request.model, folder)
            rounded = job.write(folder, known)
            written = open_model(folder)
            compared = run if isinstance(run, str) else job.compared(written, run)
            rows = None if isinstance(run, str) else run.rows
            about = {"model": model_name(request.model), "scheme": request.scheme, "group_size": group or None}
            report = report_of(rounded, compared, rows, **about, tensors_in_all=len(tensors))
            write_report(folder, report)
    first, *more = summary(report)
    return "\n".join((f"{request.out}: {first}", *more, f"opsin serve {request.out}"))


def _chosen(model: OpenModel, request: Request) -> tuple[dict[str, str], int]:
    """Keys of tensors, and the linear that each is of; and how many inputs a group has."""
    scheme, tensors = SCHEMES[request.scheme], model.files.tensors
    sketch = build_model(model.spec, model.registry, device="meta")
    checkpoint = Checkpoint(sketch, model.architecture.weights(model.spec), model.files)
    keys = chosen_keys(sketch, checkpoint, tensors, WeightPolicy(request.scheme, request.vision))
    if not keys:
        raise ConfigError(f"{request.model} has no weight that {request.scheme} can hold")
    group = scheme.group([tensors[key].shape[1] for key in keys])
    return {key: path for key, path in keys.items() if not group or tensors[key].shape[1] % group == 0}, group


class _Job:
    def __init__(self, request: Request, model: OpenModel, keys: Mapping[str, str], group: int, bars: Bars) -> None:
        self._request, self._model, self._keys, self._group, self._bars = request, model, keys, group, bars
        self._scheme = SCHEMES[request.scheme]

    def opened(self, stack: ExitStack) -> _Run | str:
        """What is run; or why nothing is. Raises ConfigError where rows were given."""
        if self._request.calibrate is None and not self._request.compare:
            return NOT_ASKED
        try:
            rows = self._rows(stack)
            return _Run(stack.enter_context(loaded(self._model, self._bars)), rows)
        except (ConfigError, SpecError) as error:
            if self._request.calibrate is not None:
                raise
            return str(error)

    def _rows(self, stack: ExitStack) -> Rows:
        request, model = self._request, self._model
        try:
            encoder = PromptEncoder(model.files, model.architecture, model.spec)
        except (ValueError, OSError) as error:
            raise SpecError(f"no text can be encoded: {error}") from error
        with self._bars.task("reading") as tick:
            if request.calibrate is None:
                return stack.enter_context(sample_rows(encoder, lambda line: tick()))
            return stack.enter_context(
                calibration_rows(request.calibrate, encoder, request.limits, lambda line: tick())
            )

    def calibrated(self, run: _Run) -> dict[str, Rounded]:
        """What data say of weights, by key. The model has its own weights again behind it."""
        base = run.loaded.base
        with self._bars.task("calibrating", len(self._keys)) as tick:
            found = Calibration(run.loaded.model, base, self._keys, self._scheme, self._group, tick)
            found.run(run.rows)
        for name in self._weights(base):
            base.fill(name)
        return found.written

    def write(self, folder: Path, known: Mapping[str, Rounded]) -> list[TensorReport]:
        """known: of calibrated tensors. What became of each that was rounded, in the model's order."""
        tensors, found = self._model.files.tensors, dict[str, TensorReport]()

        def make(key: str, tensor: Tensor) -> dict[str, Tensor]:
            if key not in self._keys:
                return {key: tensor}
            made = known[key] if key in known else self._scheme.write(tensor, self._group)[0]
            size = sum(part.nbytes for part in made.tensors.values())
            layer = layer_of(self._keys[key])
            found[key] = TensorReport(key, layer, tensor.nbytes, size, made.error, key in known)
            return {f"{key.removesuffix('.weight')}.{name}": part for name, part in made.tensors.items()}

        write_shards(folder, self._bars.over("quantizing", stored(tensors), len(tensors)), make)
        configure(folder, self._scheme.config(self._group, ignored(tensors, self._keys)))
        return [found[key] for key in self._keys]

    def compared(self, written: OpenModel, run: _Run) -> Compared | str:
        """With what was written, as it is read."""
        if not self._request.compare:
            return NOT_ASKED
        model, base = run.loaded.model, run.loaded.base
        with Checkpoint(model, written.architecture.weights(written.spec), written.files) as packed:
            comparison = Comparison(model, base, packed, self._weights(base), run.rows)
            with self._bars.task("comparing", comparison.steps) as tick:
                return comparison.run(tick)

    def _weights(self, base: Checkpoint) -> list[str]:
        """Names of the model's weights of which something is rounded."""
        return [name for name, sources in base.plan.items() if any(source.key in self._keys for source in sources)]
