"""Bodies of the routes of fine-tuning jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from opsin_server.chat.fields import WHOLE, Strict, unsupported, whole, wrong


def _auto_or(least: float, most: float, kind: Any) -> BeforeValidator:
    """ "auto", a number within bounds, or null."""

    def check(value: Any) -> Any:
        value = whole(value) if kind is int else value
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        if value is None or value == "auto" or (is_number and least <= value <= most):
            return value
        noun = "a whole number" if kind is int else "a number"
        raise wrong(f"it must be 'auto', or {noun} from {least:g} to {most:g}")

    sent: Any = Literal["auto"] | Annotated[kind, Field(ge=least, le=most)] | None
    return BeforeValidator(check, json_schema_input_type=sent)


Rows = Annotated[Any, _auto_or(1, 4096, int)]
Epochs = Annotated[Any, _auto_or(1, 1000, int)]
Positive = Annotated[Any, _auto_or(1e-6, 1e4, float)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
PAIRS = 16  # of metadata


def storable(text: str) -> str:
    """For a validator."""
    if "\0" in text:
        raise wrong("it holds the character U+0000, which PostgreSQL keeps in no text")
    return text


def checked_pairs(metadata: dict[str, str] | None) -> dict[str, str] | None:
    """For a validator."""
    if metadata is not None:
        if len(metadata) > PAIRS:
            raise wrong(f"it has {len(metadata)} pairs; at most {PAIRS} are kept")
        if any(len(name) > 64 or len(value) > 512 for name, value in metadata.items()):
            raise wrong("a key has at most 64 characters, and a value 512")
        storable("".join((*metadata, *metadata.values())))
    return metadata


class SupervisedHyperparameters(Strict):
    batch_size: Rows = None
    learning_rate_multiplier: Positive = None
    n_epochs: Epochs = None


class DpoHyperparameters(SupervisedHyperparameters):
    beta: Positive = None


class Supervised(Strict):
    hyperparameters: SupervisedHyperparameters | None = None


class Dpo(Strict):
    hyperparameters: DpoHyperparameters | None = None


class Method(Strict):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Any = None

    @model_validator(mode="after")
    def _of_its_type(self) -> Method:
        if self.type == "reinforcement":
            raise unsupported("reinforcement", "'type' must be supervised or dpo", "type")
        if self.reinforcement is not None:
            raise unsupported("reinforcement", "leave it out", "reinforcement")
        if (other := "dpo" if self.type == "supervised" else "supervised") and getattr(self, other) is not None:
            raise wrong(f"the method is {self.type}: '{other}' does not belong to it", other)
        return self

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those that were given."""
        own = self.supervised if self.type == "supervised" else self.dpo
        given = None if own is None else own.hyperparameters
        return {} if given is None else _given(given)


def _known_integration(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "tensorboard":
        raise unsupported(kind, "there is 'tensorboard'; or leave it out")
    return kind


class Integration(Strict):
    """tensorboard: not of OpenAI's; event files in the server's data directory."""

    type: Annotated[Literal["tensorboard"], BeforeValidator(_known_integration)]


class CreateJob(Strict):
    model: Annotated[Name, Field(description="the served one, or a fine-tuned one that is trained on from")]
    training_file: Annotated[Name, Field(description="a file's id, of the purpose `fine-tune`, as the next")]
    validation_file: Name | None = None
    suffix: Annotated[
        Annotated[str, Field(max_length=64), AfterValidator(storable)] | None,
        Field(description="a part of the new model's name"),
    ] = None
    seed: Annotated[
        Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE] | None,
        Field(description="left out, one is drawn and reported"),
    ] = None
    metadata: Annotated[dict[str, str] | None, Field(description="jobs are found by it; at most 16 pairs")] = None
    method: Annotated[Method | None, Field(description="left out, `supervised`")] = None
    hyperparameters: Annotated[
        SupervisedHyperparameters | None, Field(description="deprecated, and as those of `method`")
    ] = None
    integrations: Annotated[list[Integration], Field(max_length=1)] | None = None
    opsin: Annotated[
        dict[str, Any] | None,
        Field(description="options of `opsin finetune`, and `publish_as`, `promote`, `max_seconds`"),
    ] = None

    @field_validator("metadata")
    @classmethod
    def _small(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        return checked_pairs(metadata)

    @model_validator(mode="after")
    def _one_place(self) -> CreateJob:
        own = {} if self.hyperparameters is None else _given(self.hyperparameters)
        if self.method is not None and any(value != "auto" for value in own.values()):
            raise wrong("they are deprecated: give them in 'method' alone", "hyperparameters")
        return self

    @property
    def asked(self) -> dict[str, Any]:
        """What a job keeps, as JSON."""
        kind = "supervised" if self.method is None else self.method.type
        own = {} if self.hyperparameters is None else _given(self.hyperparameters)
        hyperparameters = own if self.method is None else self.method.hyperparameters
        return {
            "model": self.model,
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "suffix": self.suffix,
            "seed": self.seed,
            "metadata": self.metadata or {},
            "method": {"type": kind, "hyperparameters": hyperparameters},
            "integrations": [{"type": one.type} for one in self.integrations or ()],
            "opsin": self.opsin or {},
        }


def _given(model: Strict) -> dict[str, Any]:
    return {name: value for name, value in model.model_dump().items() if value is not None}
