"""A language model's GGUF and the vision tower beside it (llama.cpp's mmproj file) as one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsin_plugins.loading.gguf.container import Container, read_container
from opsin_plugins.loading.gguf.metadata import Fields
from opsin_plugins.loading.gguf.vision.idefics3 import read_idefics3
from opsin_plugins.loading.gguf.vision.llava import read_llava
from opsin_plugins.loading.gguf.vision.pixtral import read_pixtral
from opsin_plugins.loading.gguf.vision.qwen2_vl import read_qwen2_5_vl, read_qwen2_vl
from opsin_plugins.loading.gguf.vision.tower_file import TowerFile, VisionHalf
from opsin_plugins.spec import SpecError


@dataclass(frozen=True)
class Projector:
    """decoders: architectures that it goes with. tokens: what the vocabulary has to have, the one that stands for a
    picture first. last: the tensor whose rows are as wide as the decoder. language: what transformers puts in front of
    the decoder's tensors. video: the token that stands for one, where the vocabulary has it."""

    model: str
    decoders: tuple[str, ...]
    tokens: tuple[str, ...]
    last: str
    read: Callable[[TowerFile], VisionHalf]
    language: str = "model.language_model."
    video: str = ""


VIDEO = "<|video_pad|>"
_QWEN = (("qwen2vl",), ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>"), "mm.2.weight")
PROJECTORS: Mapping[str, Projector] = {
    "mlp": Projector("LLaVA-1.5", ("llama", "qwen2", "qwen3"), ("<image>",), "mm.2.weight", read_llava),
    "qwen2vl_merger": Projector("Qwen2-VL", *_QWEN, read_qwen2_vl, video=VIDEO),
    "qwen2.5vl_merger": Projector("Qwen2.5-VL", *_QWEN, read_qwen2_5_vl, video=VIDEO),
    "idefics3": Projector(
        "Idefics3, SmolVLM",
        ("llama",),
        ("<image>", "<fake_token_around_image>"),
        "mm.model.fc.weight",
        read_idefics3,
        "model.text_model.",
    ),
    "pixtral": Projector(
        "Pixtral, Mistral Small 3.1",
        ("llama", "mistral3"),
        ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        "mm.2.weight",
        read_pixtral,
    ),
}


@dataclass(frozen=True)
class Mmproj:
    """An mmproj file that is read, and is of a kind that is."""

    container: Container
    projector: Projector
    half: VisionHalf

    def config(self, decoder: Container, text: Mapping[str, Any]) -> dict[str, Any]:
        """Of the whole model, as config.json would have it. text: the decoder's, as of `decoder_config`. Raises
        SpecError for a decoder that this tower does not belong to."""
        said, width = Fields(decoder), self.container.tensors[self.projector.last].shape[0]
        architecture = said.text("general.architecture")
        if architecture not in self.projector.decoders:
            wanted = " or ".join(self.projector.decoders)
            raise self._wrong(
                f"it belongs to a decoder of the architecture {wanted}, and {decoder.path} is {architecture}"
            )
        if width != text["hidden_size"]:
            raise self._wrong(
                f"it gives {width:,} values a visual token, and {decoder.path} takes {text['hidden_size']:,}"
            )
        vocabulary = said.items("tokenizer.ggml.tokens")
        if missing := [token for token in self.projector.tokens if token not in vocabulary]:
            raise self._wrong(f"its pictures need {', '.join(missing)}, which the vocabulary of {decoder.path} has not")
        token = vocabulary.index(self.projector.tokens[0])
        tied = {"tie_word_embeddings": text["tie_word_embeddings"]}
        placeholder = dict.fromkeys(("image_token_id", "image_token_index"), token)  # (families differ in its name)
        if (video := self.projector.video) in vocabulary:
            placeholder["video_token_id"] = vocabulary.index(video)
        return {**self.half.config, **tied, **placeholder, "text_config": _language(said, text)}

    def _wrong(self, sentence: str) -> SpecError:
        return SpecError(f"{self.container.path} is of {self.projector.model}: {sentence}. {_known()}")


def read_mmproj(path: Path) -> Mmproj:
    """Raises SpecError for what is no mmproj file, or one of a kind that is not read."""
    if not path.is_file():
        raise SpecError(f"--mmproj {path} is no file")
    container = read_container(path)
    said = Fields(container)
    if (architecture := said.text("general.architecture")) != "clip":
        raise SpecError(f"--mmproj {path} is no vision tower: its architecture is {architecture!r}, and not 'clip'")
    kind = said.text("clip.projector_type", said.text("clip.vision.projector_type", "none"))
    if kind not in PROJECTORS:
        raise SpecError(f"--mmproj {path}: the projector {kind!r} is not read. {_known()}")
    projector, file = PROJECTORS[kind], TowerFile(container)
    file.matrix(projector.last)
    return Mmproj(container, projector, projector.read(file))


def _known() -> str:
    kinds = ", ".join(f"{kind} ({one.model}, {one.tokens[0]})" for kind, one in PROJECTORS.items())
    return f"There are {kinds}"


def _language(said: Fields, text: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's configuration, with the parts of a head that turn by time, row and column, where it has them."""
    sections = said.items(f"{said.text('general.architecture')}.rope.dimension_sections")
    if not sections:
        return dict(text)
    rope = text["rope_scaling"] or {"rope_type": "default"}
    return {**text, "rope_scaling": {**rope, "mrope_section": sections[:3]}}
