"""A directory as transformers reads it: its processor (with PIL, since torchvision is not installed), its model, its
settings of generation."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers.processing_utils import VideosKwargs

from opsin_plugins.spec import U8
from support.repositories.directories import video_settings

Json = dict[str, Any]


class TransformersReading:
    """processor: the name of a class; None: the tokenizer alone, as for language models. strings: roles whose content
    the template wants as one string."""

    def __init__(self, directory: Path, processor: str | None, strings: Sequence[str] = ()) -> None:
        self.directory, self.strings = directory, strings
        self.tokenizer = hf.AutoTokenizer.from_pretrained(directory)
        self.processor = _read_processor(directory, processor) if processor else None

    @cached_property
    def model(self) -> Any:
        auto = hf.AutoModelForImageTextToText if self.processor is not None else hf.AutoModelForCausalLM
        return auto.from_pretrained(self.directory, dtype=torch.float32).eval()

    def inputs(
        self, messages: Sequence[Json], images: Sequence[U8], generation_prompt: bool = True
    ) -> dict[str, Tensor]:
        """messages: as OpenAI's clients send them; images: in the order of their parts."""
        pictures = (Image.fromarray(image) for image in images)
        turns: list[Json] = [{"role": m["role"], "content": _content(m["content"], pictures)} for m in messages]
        for turn in turns:
            if turn["role"] in self.strings:
                turn["content"] = "".join(part["text"] for part in turn["content"])
        how = {
            "add_generation_prompt": generation_prompt,
            "tokenize": True,
            "return_dict": True,
            "return_tensors": "pt",
        }
        return dict((self.processor or self.tokenizer).apply_chat_template(turns, **how))

    def generate(self, inputs: Mapping[str, Tensor], count: int, **how: Any) -> list[int]:
        """Greedy, as generation_config.json has all else."""
        out = self.model.generate(**inputs, max_new_tokens=count, do_sample=False, **how)
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    @property
    def ends(self) -> set[int]:
        """The ids at which `generate` stops."""
        found = self.model.generation_config.eos_token_id
        return set(found if isinstance(found, list) else [] if found is None else [found])

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, directory: Path) -> Path:
        """Saved again, in the form of this version of transformers."""
        self.model.save_pretrained(directory)
        (self.processor or self.tokenizer).save_pretrained(directory)
        path = directory / "processor_config.json"
        if isinstance(self.processor, _WithoutVideos):
            saved = {**json.loads(path.read_text()), "video_processor": video_settings(self.directory)}
            path.write_text(json.dumps(saved))
        return directory


def _content(content: str | Sequence[Json], pictures: Iterator[Image.Image]) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part if part["type"] == "text" else {"type": "image", "image": next(pictures)} for part in content]


def _read_processor(directory: Path, name: str) -> Any:
    """Without a processor of videos, which would need torchvision and num2words."""
    found = _pixtral_processor() if name == "PixtralProcessor" else getattr(hf, name)
    if "video_processor" in (attributes := found.get_attributes()):
        found = type(name, (_WithoutVideos, found), {})
        found.kept = [attribute for attribute in attributes if attribute != "video_processor"]
    with mock.patch("transformers.models.smolvlm.processing_smolvlm.num2words", object()):
        return found.from_pretrained(directory, backend="pil")


class _WithoutVideos:
    kept: ClassVar[list[str]]
    video_processor = SimpleNamespace(num_frames=1, fps=1, valid_kwargs=VideosKwargs)  # (asked for by SmolVLM)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return cls.kept

    @classmethod
    def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
        return [*super()._get_arguments_from_pretrained(*args, **kwargs), None]  # type: ignore[misc]


def _pixtral_processor() -> Any:
    """Its module imports the image processor that needs torchvision."""
    from transformers.models.pixtral import image_processing_pil_pixtral as pil

    with mock.patch.dict(sys.modules, {"transformers.models.pixtral.image_processing_pixtral": pil}):
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor
    return PixtralProcessor
