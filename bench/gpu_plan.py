"""What bench/gpu.sh does with its minutes: stages in order, each with its rows and the seconds that it may take.

A stage must have ended when the seconds of all stages up to it have passed since the command began. So what one leaves
over is the next one's, and none can take what belongs to those behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

QWEN_2B, QWEN_7B, LLAMA = "Qwen2-VL-2B-Instruct", "Qwen2-VL-7B-Instruct", "Llama-3.2-11B-Vision-Instruct"
SETUP = 15  # seconds before the first stage: wheels are installed
END = 8  # after the last: the compiled kernels are packed


@dataclass(frozen=True)
class Decode:
    """Steps of a model with `text` tokens and, should edge not be 0, a picture of edge x edge in every prompt."""

    batches: tuple[int, ...]
    text: int
    edge: int = 0


DECODE: Mapping[str, Decode] = {
    QWEN_2B: Decode((1, 8, 32, 128), 2048),
    QWEN_7B: Decode((1, 32), 2048),
    LLAMA: Decode((1, 8), 512, 1120),
}
EDGE = 1024  # of the picture that is prefilled
TEXT = 30  # tokens behind it
CHECKED = (QWEN_2B, LLAMA)  # small forms are compared with the definitions
LINEAR_ROWS = (1, 8, 32, 128, 2048)


@dataclass(frozen=True)
class StepForm:
    """How decode steps are run. ahead: whether each is launched before the results of the one before are read."""

    name: str
    captured: bool
    ahead: bool


FORMS = (
    StepForm("captured", captured=True, ahead=True),
    StepForm("eager", captured=False, ahead=True),
    StepForm("captured, waited for", captured=True, ahead=False),
)


def decode_row(model: str, batch: int, form: StepForm = FORMS[0]) -> str:
    return f"{model} decode, batch {batch}, {form.name}"


def prefill_row(model: str) -> str:
    return f"{model} prefill, {EDGE} x {EDGE}"


def made_row(model: str) -> str:
    return f"{model} made and warm"


def shallow_row(model: str) -> str:
    return f"{model} kernels compiled"


def check_row(model: str, captured: bool) -> str:
    return f"small {model}, {'captured' if captured else 'eager'} steps"


def linear_row(model: str, rows: int) -> str:
    return f"{model} linears of a layer, {rows} rows"


COPY, PRODUCT, LAUNCH, NODE = "copy", "product", "launch of a kernel", "kernel of a capture"
TESTS, SERVED, TILES = "all kernel tests", "a request to the server", "tiles of attention"


def model_rows(model: str) -> tuple[str, ...]:
    """In the order in which they are measured."""
    steps = [decode_row(model, batch, form) for batch in DECODE[model].batches for form in FORMS]
    return (made_row(model), prefill_row(model), *steps)


@dataclass(frozen=True)
class Command:
    """A script of bench/ with arguments, or `module` of Python. rows: what it must bring; it may bring more."""

    arguments: tuple[str, ...]
    rows: tuple[str, ...] = ()
    module: bool = False


@dataclass(frozen=True)
class Stage:
    """Commands that run side by side."""

    name: str
    seconds: int
    commands: tuple[Command, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(row for command in self.commands for row in command.rows)


# of tests/kernels/interpreted
NATIVE = (
    "attention",
    "bitmask",
    "gradients",
    "linear_cross_entropy",
    "lora",
    "penalties",
    "quantized_linear",
    "sampling",
    "small",
    "w8a8",
)
PYTEST = Command(
    ("pytest", "-q", "-p", "xdist.plugin", "-p", "pytest_timeout", "-p", "pytest_rows", "--timeout", "60", "-n",
     "{workers}", *(f"tests/kernels/interpreted/test_{name}.py" for name in NATIVE)), (TESTS,), module=True,
)  # fmt: skip
CHECK = Command(("engine_check.py",), tuple(check_row(m, captured) for m in CHECKED for captured in (False, True)))
SHALLOW = tuple(Command(("engine.py", model, "--shallow"), (shallow_row(model),)) for model in DECODE)
ASK = Command(("ask.py",), (SERVED,))
CEILINGS = Command(
    ("ceilings.py",),
    (COPY, PRODUCT, LAUNCH, NODE, *(linear_row(m, n) for m in DECODE for n in LINEAR_ROWS)),
)
ENGINE = {model: Command(("engine.py", model), model_rows(model)) for model in DECODE}
KERNELS, TUNE = Command(("kernels.py",)), Command(("tune.py",), (TILES,))

FIRST = (
    Stage("correct", 125, (PYTEST, CHECK, ASK, *SHALLOW)),
    Stage("ceilings", 25, (CEILINGS,)),
    Stage(QWEN_2B, 85, (ENGINE[QWEN_2B],)),
    Stage(QWEN_7B, 55, (ENGINE[QWEN_7B],)),
    Stage(LLAMA, 65, (ENGINE[LLAMA],)),
    Stage("kernels", 42, (KERNELS,)),
)
SECOND = (
    Stage("correct", 45, (PYTEST, CHECK, ASK)),
    Stage("ceilings", 10, (CEILINGS,)),
    Stage(QWEN_2B, 25, (ENGINE[QWEN_2B],)),
    Stage(QWEN_7B, 20, (ENGINE[QWEN_7B],)),
    Stage(LLAMA, 25, (ENGINE[LLAMA],)),
    Stage("tune", 75, (TUNE,)),
    Stage("kernels", 17, (KERNELS,)),
)
LIMITS = {"first": 7 * 60, "second": 4 * 60}  # seconds, from the start of gpu.sh to its end
REHEARSED = 2  # what all seconds are times with --tiny: few cores interpret what sixteen compile
PLANS: Mapping[str, tuple[Stage, ...]] = {"first": FIRST, "second": SECOND}


def deadlines(stages: tuple[Stage, ...], times: int = 1) -> list[int]:
    """Seconds after the start of gpu.sh at which each stage must have ended."""
    return [times * at for at in accumulate((stage.seconds for stage in stages), initial=SETUP)][1:]
