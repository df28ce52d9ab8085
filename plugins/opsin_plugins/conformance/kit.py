"""The list of checks, and how they are run: one line each, in an order in which one may need another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opsin_plugins.conformance import adapters, declarations, parity, pieces, prompts, tiny_model, videos
from opsin_plugins.conformance.subject import NO_EXAMPLE, Subject
from opsin_plugins.conformance.verdicts import Failed, Skipped
from opsin_plugins.loading.registry import PluginError, Registry
from opsin_plugins.spec import Architecture, ModelFiles, SpecError


@dataclass(frozen=True)
class Check:
    """run returns a remark, or raises Failed or Skipped. needs: checks that must have passed, by name."""

    name: str
    run: Callable[[Subject], str]
    needs: tuple[str, ...] = ()


CHECKS: Sequence[Check] = (
    Check("example", declarations.example),
    Check("spec", declarations.spec, ("example",)),
    Check("imports", declarations.imports, ("spec",)),
    Check("weights", declarations.weights, ("spec",)),
    Check("claims", declarations.claims, ("spec",)),
    Check("lora groups", declarations.lora_groups, ("weights",)),
    Check("preprocess", prompts.pictures, ("spec",)),
    Check("expand", prompts.expand, ("preprocess",)),
    Check("positions", prompts.positions, ("expand",)),
    Check("videos", videos.videos, ("positions",)),
    Check("pictures alone", tiny_model.pictures_alone, ("weights", "expand")),
    Check("packed batch", tiny_model.packed, ("weights", "expand", "positions")),
    Check("chunks", tiny_model.chunks, ("weights", "expand", "positions")),
    Check("linears", adapters.linears, ("lora groups",)),
    Check("adapters", adapters.adapters, ("linears", "chunks")),
    Check("stages", pieces.stages, ("packed batch", "adapters")),
    Check("gradients", tiny_model.gradients, ("weights", "expand", "positions")),
    Check("int8", tiny_model.int8, ("weights", "expand", "positions")),
    Check("transformers", parity.transformers, ("weights", "expand", "positions")),
)

NEEDS = "needs "
OBSTACLES = (NEEDS, NO_EXAMPLE)


@dataclass(frozen=True)
class Result:
    check: str
    verdict: Literal["ok", "FAILED", "skipped"]
    remark: str = ""

    @property
    def lacking(self) -> bool:
        """Whether what needs this check cannot run. One that does not apply to the model is no obstacle."""
        return self.verdict == "FAILED" or (self.verdict == "skipped" and self.remark.startswith(OBSTACLES))

    def __str__(self) -> str:
        return f"  {self.check:<15} {self.verdict}{': ' if self.remark else ''}{self.remark}"


def check_architecture(
    name: str,
    architecture: Architecture,
    registry: Registry,
    report: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """report: told of each result as it is known."""
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="opsin-check-") as folder:
        subject = Subject(name, architecture, registry, Path(folder))
        for check in CHECKS:
            result = _result(check, subject, results)
            results.append(result)
            report(result)
    return results


def _result(check: Check, subject: Subject, before: Sequence[Result]) -> Result:
    lacking = {r.check for r in before if r.lacking}
    if missing := [need for need in check.needs if need in lacking]:
        return Result(check.name, "skipped", NEEDS + ", ".join(missing))
    try:
        return Result(check.name, "ok", check.run(subject))
    except Skipped as reason:
        return Result(check.name, "skipped", str(reason))
    except (Failed, SpecError) as failure:
        return Result(check.name, "FAILED", str(failure))
    except Exception as error:  # whatever a stranger's code raises is a finding, not the end
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f" ({Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno})" if where is not None else ""
        return Result(check.name, "FAILED", f"{type(error).__name__}: {error}{place}")


def installed(registry: Registry) -> list[str]:
    """Names of all architectures, broken ones too."""
    return sorted({row.name for row in registry.status() if row.kind == "architecture"})


def named(name: str, registry: Registry) -> Architecture:
    """By the smallest configuration that the name claims. Raises PluginError."""
    model_type, _, second = name.partition(".")
    return registry.architecture(ModelFiles(Path(), {"model_type": model_type, **({second: {}} if second else {})}))


def run(names: Sequence[str], registry: Registry) -> bool:
    """Prints a line a check. Returns whether none failed."""
    healthy = True
    for name in names:
        print(name, flush=True)  # noqa: T201
        try:
            architecture = named(name, registry)
        except PluginError as error:
            results = [Result("loads", "FAILED", str(error))]
            _print(results[0])
        else:
            results = check_architecture(name, architecture, registry, _print)
        # (nothing checked is nothing known)
        healthy = (
            healthy and not any(r.verdict == "FAILED" for r in results) and any(r.verdict == "ok" for r in results)
        )
    return healthy


def _print(result: Result) -> None:
    print(result, flush=True)  # noqa: T201
