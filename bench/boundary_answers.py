"""Whether what a server says to a number is right: an answer where the document allows it, else a 400 that names it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from boundary_bodies import Bodies
from boundary_fields import Field
from neighbours import Client

JOBS = ("createFineTuningJob", "createFineTune")
HYPERPARAMETERS = ("batch_size", "n_epochs", "learning_rate_multiplier", "beta")
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
SAID = ("choices", "output", "data", "content", "prompt", "method", "hyperparams", "bytes")
NO_VIDEOS = "unsupported_video"  # of a model that takes none
TINY, ANSWERED, REFUSED = "5e-324", "answered", "400"


@dataclass
class Findings:
    """outcomes: a word for each value of a field. wrong: what is not as it should be, in sentences."""

    outcomes: dict[Field, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    wrong: list[str] = field(default_factory=list)
    requests: int = 0


def try_fields(client: Client, fields: Iterable[Field], bodies: Bodies) -> Findings:
    found = Findings()
    for one in fields:
        answers: dict[Any, str] = {}
        for text in one.values():
            body = bodies.at(one, text)
            status, data = client.send("POST", one.route, body)
            found.requests += 1
            answer = json.loads(data)
            found.outcomes[one][text] = outcome(one, text, body, status, answer)
            faults = (
                [*answer_faults(one, text, body, answer, answers)]
                if status == 200
                else refusal_faults(one, status, answer, one.allows(text, body))
            )
            found.wrong += [f"{one.operation} {one.name}={text}: {fault}" for fault in faults]
            if status == 200 and one.operation in JOBS:
                client.send("POST", f"/v1/fine_tuning/jobs/{answer['id']}/cancel")
        if None in answers and (without := bodies.without(one)) is not None:
            answer = json.loads(client.send("POST", one.route, without)[1])
            if essence(answer) != answers[None]:
                found.wrong.append(f"{one.operation} {one.name}: null is not what leaving it out is")
    return found


def outcome(one: Field, text: str, body: bytes, status: int, answer: dict[str, Any]) -> str:
    """REFUSED with its code where the document allows the value: something else does not."""
    if status == 200:
        return ANSWERED
    error = answer.get("error", {})
    return f"{status} ({error.get('code') or error.get('type')})" if one.allows(text, body) else str(status)


def refusal_faults(one: Field, status: int, answer: dict[str, Any], allowed: bool) -> list[str]:
    """The field is named, or what it is in: by a param, or in the message where errors have none (Anthropic's)."""
    error = answer.get("error", {})
    param = error.get("param")
    inside = param is not None and one.name.startswith((f"{param}.", f"{param}["))
    if error.get("code") == NO_VIDEOS and allowed:
        return []
    if status in (400, 413) and (
        param == one.name or inside or (param is None and one.name in error.get("message", ""))
    ):
        return []
    return [f"{status} {answer}"]


def answer_faults(one: Field, text: str, body: bytes, answer: dict[str, Any], answers: dict[Any, str]) -> Iterator[str]:
    """answers: of the values before, by number; this one's is added. Equal numbers have equal answers, and next to no
    temperature or probability leaves what greedy choice leaves."""
    value, said, name = json.loads(text), essence(answer), one.path[-1]
    if not one.allows(text, body):
        yield "it was answered"
    if answers.setdefault(value, said) != said:
        yield f"equal numbers, {said} and {answers[value]}"
    if name == "temperature" and text == TINY and said != answers[0]:
        yield f"{said} is not the greedy {answers[0]}"
    if value is not None:
        yield from _not_as_asked(one, value, answer)


def essence(answer: dict[str, Any]) -> str:
    """What is said, without ids, times and what a cache had."""
    return json.dumps([_without_ids(answer.get(name)) for name in SAID])


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_ids(inner) for name, inner in value.items() if name != "id"}
    return [_without_ids(inner) for inner in value] if isinstance(value, list) else value


def _not_as_asked(one: Field, value: Any, answer: dict[str, Any]) -> Iterator[str]:
    name, choices = one.path[-1], answer.get("choices", [])
    if name == "n" and len(choices) != value:
        yield f"{len(choices)} choices"
    if name in LIMITS:
        usage = answer["usage"]
        used = usage.get("completion_tokens", usage.get("output_tokens"))
        if not 0 < used <= value:
            yield f"{used} tokens"
    if name == "top_logprobs" and choices:
        numbers = {len(token["top_logprobs"]) for token in choices[0]["logprobs"]["content"]}
        if numbers != {value}:
            yield f"{numbers} alternatives"
    if name in HYPERPARAMETERS and one.operation == "createFineTuningJob":
        method = answer["method"]
        if method[method["type"]]["hyperparameters"][name] != value:
            yield f"the job has {method}"
    if one.path == ("seed",) and one.operation in JOBS and answer["seed"] != value:
        yield f"the job has {answer['seed']}"
