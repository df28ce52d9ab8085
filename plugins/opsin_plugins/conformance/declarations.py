"""Checks of the declaration: spec, imports, weight rules, what the encoder claims, LoRA groups."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from opsin_plugins.blocks.checkpoint import targets
from opsin_plugins.conformance.published import Published, invert
from opsin_plugins.conformance.subject import Subject
from opsin_plugins.conformance.verdicts import Failed, Skipped, same
from opsin_plugins.loading.weight_matching import assign
from opsin_plugins.spec import ModelFiles, Prefix
from opsin_plugins.spec.weight_rules import name_pattern

HEAVY = ("torch", "transformers")
PROBE = """
import importlib, sys
sys.path[:] = {path!r}
for name in {modules!r}:
    importlib.import_module(name)
    heavy = [h for h in {heavy!r} if h in sys.modules]
    if heavy:
        print(name, "imports", " and ".join(heavy))
        break
"""
GROUP = re.compile(r"(vision|projector|language|cross)\.(attention|mlp)")


def example(subject: Subject) -> str:
    """There is one, and the registry finds this plugin for it."""
    config = subject.example.config
    found = subject.registry.architecture(ModelFiles(Path(), config))
    same("the plugin that claims the example", type(found).__name__, type(subject.architecture).__name__)
    return f"model_type {config.get('model_type')}"


def spec(subject: Subject) -> str:
    """Frozen, hashable, and the same each time it is made."""
    made = subject.spec
    for part in _parts(made):
        if not type(part).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise Failed(f"{type(part).__name__} is not frozen")
    try:
        hash(made)
    except TypeError as error:
        raise Failed(f"the spec cannot be hashed: {error}") from error
    if made != subject.architecture.spec(subject.example):
        raise Failed("two specs of one configuration differ")
    return ""


def _parts(spec: object) -> Iterator[object]:
    yield spec
    for field in fields(spec):  # type: ignore[arg-type]
        if is_dataclass(value := getattr(spec, field.name)):
            yield from _parts(value)


def imports(subject: Subject) -> str:
    """What the API process imports of the plugin brings neither torch nor transformers."""
    plugins: list[object] = [subject.architecture]
    if subject.spec.encoder is not None and subject.spec.fusion is not None:
        plugins += [subject.registry.encoder(subject.spec.encoder), subject.registry.fusion(subject.spec.fusion)]
    modules = sorted({type(plugin).__module__ for plugin in plugins})
    code = PROBE.format(path=sys.path, modules=modules, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise Failed(f"{', '.join(modules)}: {done.stderr.strip().splitlines()[-1]}")
    if said := done.stdout.strip():
        raise Failed(said)
    return ", ".join(modules)


def weights(subject: Subject) -> str:
    """Every parameter has a rule; a checkpoint of those names loads, in every dialect that the rules know."""
    shapes = {name: target.shape for name, target in targets(subject.sketch).items()}
    plan = assign(subject.files.tensors, subject.rules, shapes)
    dialects = [rule for rule in subject.rules if isinstance(rule, Prefix)]
    for prefix in dialects:
        spoken = {_in_dialect(key, prefix): info for key, info in subject.files.tensors.items()}
        other = assign(spoken, subject.rules, shapes)
        for target, sources in plan.items():
            keys = [_in_dialect(source.key, prefix) for source in sources]
            same(f"{prefix.old}: the sources of {target}", [source.key for source in other[target]], keys)
    assert subject.model
    return f"{len(subject.published)} tensors, {len(dialects)} prefixes of other dialects"


def _in_dialect(key: str, prefix: Prefix) -> str:
    return prefix.old + key.removeprefix(prefix.new) if key.startswith(prefix.new) else key


def claims(subject: Subject) -> str:
    """What the encoder claims leads back to it, and its patterns name linears of its tower and nothing else."""
    if subject.spec.vision is None or subject.spec.encoder is None:
        raise Skipped("a language model")
    encoder = subject.registry.encoder(subject.spec.encoder)
    said = encoder.claims
    if not said.model_types and not said.not_composed:
        raise Failed("it claims no model_type, and does not say why nothing is composed with it (not_composed)")
    for kind in said.model_types:
        same(f"the encoder that claims {kind!r}", subject.registry.encoder_for(kind).name, encoder.name)
    if said.prefix and not said.prefix.endswith("."):
        raise Failed(f"prefix {said.prefix!r} does not end with a dot")
    tower = invert(encoder.weights(subject.spec.vision, ""), subject.sketch, "vision.")
    for name in said.left_out:
        if taken := next(filter(name_pattern(name).fullmatch, tower), None):
            raise Failed(f"left_out: {name!r} leaves out {taken}, which the tower needs")
    for field, linears in (("attention", said.attention), ("mlp", said.mlp)):
        _names_linears(field, linears, tower)
    return ", ".join(said.model_types) or said.not_composed


def _names_linears(field: str, pattern: str, tower: Mapping[str, Published]) -> None:
    linears = re.compile(pattern.replace("{i}", r"\d+"))
    names = {bare(name): tensor for name, tensor in tower.items()}
    members = [name for name in names if linears.fullmatch(name)]
    if pattern and not members:
        raise Failed(f"{field}: {pattern!r} matches no name of the tower")
    for name in members:
        if not tower.get(f"{name}.weight", names[name]).linear:
            raise Failed(f"{field}: {name} is no linear")


def bare(name: str) -> str:
    """A linear's name, of its weight or its bias."""
    return re.sub(r"[._](weight|bias)$", "", name)


def lora_groups(subject: Subject) -> str:
    """Each names linears of the checkpoint, and no two the same."""
    groups = subject.architecture.lora_groups(subject.spec)
    names = {bare(key): tensor for key, tensor in subject.published.items()}
    owner: dict[str, str] = {}
    for group, pattern in groups.items():
        if not GROUP.fullmatch(group):
            raise Failed(f"{group!r} is no part and component, such as 'language.attention'")
        members = [name for name in names if pattern.fullmatch(name)]
        if not members:
            raise Failed(f"{group}: {pattern.pattern!r} matches no published name")
        for name in members:
            if name in owner:
                raise Failed(f"{name} is in both {owner[name]} and {group}")
            if not subject.published.get(f"{name}.weight", names[name]).linear:
                raise Failed(f"{group}: {name} is no linear")
            owner[name] = group
    return f"{len(owner)} linears in {len(groups)} groups"
