"""What `opsin compose` does: two halves read, the whole checked before a byte is written, and written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from opsin_plugins.blocks.checkpoint import targets
from opsin_plugins.blocks.model import build_model
from opsin_plugins.families.config_fields import integer
from opsin_plugins.loading.open_model import open_files, open_model
from opsin_plugins.loading.registry import Registry
from opsin_plugins.loading.weight_matching import assign
from opsin_plugins.spec import Architecture, ImageBudget, ModelFiles, ModelSpec, SpecError, TensorInfo
from opsin_server.atomic_directory import check_out, check_room, whole_or_nothing
from opsin_server.compose.placeholder import PLACEHOLDER, Words, picture_template, with_placeholder
from opsin_server.compose.sources import Half, VisionHalf, read_encoder, read_language
from opsin_server.compose.tensors import (
    DTYPES,
    EMBEDDING,
    Part,
    common_dtype,
    copied_parts,
    projector_parts,
    write_shards,
)
from opsin_server.errors import ConfigError

FUSIONS = {
    "scatter": "",
    "levels": "it adds visual rows after layers of a decoder that was trained with them",
    "cross_attention": "it needs cross-attention layers, which the language model does not have",
}
PROJECTORS = {
    "mlp2x": "",
    "linear": "a LLaVA directory has no form for a projector of one layer",
}
# Where the encoder has a choice. LLaVA-1.5 takes CLIP's last layer but one. OneVision takes SigLIP's last but one too:
# it cuts the 27th off and then takes the last of 26. The last layer is shaped by what comes behind it in the encoder's
# own training.
FEATURE_LAYER = -2


@dataclass(frozen=True)
class Request:
    """layer, select: of the encoder's features; None: as LLaVA does. dtype "auto": the language model's."""

    vision: Path
    language: Path
    out: Path
    fusion: str = "scatter"
    projector: str = "mlp2x"
    layer: int | None = None
    select: str | None = None
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True)
class Whole:
    """The model as it will be, nothing of it written. files: the directory without its words."""

    files: ModelFiles
    architecture: Architecture
    spec: ModelSpec
    parts: Sequence[Part]
    words: Words
    picture_tokens: int  # visual tokens of a picture


def compose(request: Request) -> str:
    """What was written, in lines for the operator. Raises SpecError or ConfigError, and then has written nothing."""
    _choose("fusion", request.fusion, FUSIONS)
    _choose("projector", request.projector, PROJECTORS)
    out = request.out.resolve()
    check_out(out)
    registry = Registry()
    encoder, language = read_encoder(request.vision, registry), read_language(request.language)
    whole = _assembled(request, registry, encoder, language)
    check_room(out, sum(part.nbytes for part in whole.parts))
    with whole_or_nothing(out) as folder:
        template = _write_texts(folder, whole)
        write_shards(folder, whole.parts, request.seed)
        if open_model(folder).spec != whole.spec:
            raise SpecError("the directory as written describes another model than the one that was composed")
    return _report(request, language, whole, template)


def _choose(flag: str, name: str, known: Mapping[str, str]) -> None:
    taken = ", ".join(name for name, why in known.items() if not why)
    if name not in known:
        raise ConfigError(f"--{flag} {name}: there is {taken}")
    if known[name]:
        raise ConfigError(f"--{flag} {name}: {known[name]}; there is {taken}")


def _assembled(request: Request, registry: Registry, encoder: VisionHalf, language: Half) -> Whole:
    """Raises SpecError unless the family that will serve the directory takes every tensor of it, and misses none."""
    words = with_placeholder(language.files)
    tensors = language.files.tensors
    embedding = tensors.get(language.names.get(EMBEDDING, ""))
    if embedding is None or len(embedding.shape) != 2:
        raise SpecError(f"--language {language.files.directory} has no model.embed_tokens.weight")
    rows = embedding.shape[0]
    stated = integer(language.config, "vocab_size", rows)
    if stated != rows:
        raise SpecError(f"--language {language.files.directory}: vocab_size {stated}, but {rows} rows of embedding")
    rows = max(rows, words.placeholder + 1)
    parts = copied_parts(encoder, language, rows, request.dtype)
    config = _config(request, encoder, language, words, rows)
    files = ModelFiles(
        directory=request.out,
        config=config,
        preprocessor=_preprocessor(encoder),
        generation=language.files.generation,
        tokenizer_config=words.config,
        chat_template=language.files.chat_template,
        tensors=_infos(request.out, parts),
    )
    opened = open_files(files, registry)
    architecture, spec = opened.architecture, opened.spec
    assert spec.projector is not None
    parts = [*projector_parts(spec.projector, common_dtype(language, request.dtype)), *parts]
    files = replace(files, tensors=_infos(request.out, parts))
    sketch = build_model(spec, registry, device="meta")
    assign(files.tensors, architecture.weights(spec), {name: place.shape for name, place in targets(sketch).items()})
    picture_tokens = _picture_tokens(architecture, spec)
    config = {**config, "image_seq_length": picture_tokens}
    return Whole(replace(files, config=config), architecture, spec, parts, words, picture_tokens)


def _infos(out: Path, parts: Sequence[Part]) -> dict[str, TensorInfo]:
    return {part.name: TensorInfo(out, part.dtype, part.shape) for part in parts}


def _config(request: Request, encoder: VisionHalf, language: Half, words: Words, rows: int) -> dict[str, object]:
    layer = FEATURE_LAYER if encoder.encoder.claims.selects_layer else -1
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "torch_dtype": str(DTYPES[common_dtype(language, request.dtype)]).removeprefix("torch."),
        "image_token_index": words.placeholder,
        "vision_feature_layer": layer if request.layer is None else request.layer,
        # (a class token is no part of the picture's grid; most towers have none to leave out)
        "vision_feature_select_strategy": request.select or ("default" if encoder.tower.class_token else "full"),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": language.config["tie_word_embeddings"],
        "text_config": {**language.config, "vocab_size": rows},
        "vision_config": encoder.config,
    }


def _picture_tokens(architecture: Architecture, spec: ModelSpec) -> int:
    """Visual tokens of a picture of the size that the encoder resizes to."""
    assert spec.image is not None
    height, width = (max(side, spec.image.patch * spec.image.merge) for side in spec.image.size)
    (item,) = architecture.preprocess([np.zeros((height, width, 3), np.uint8)], spec, ImageBudget())
    return item.tokens


def _write_texts(folder: Path, whole: Whole) -> str:
    """All but the weights. What the chat template is, in words."""
    documents: dict[str, Mapping[str, object]] = {
        "config.json": whole.files.config,
        "processor_config.json": _processor(whole),
        "tokenizer_config.json": whole.words.config,
    }
    if whole.files.preprocessor is not None:
        documents["preprocessor_config.json"] = whole.files.preprocessor
    if whole.files.generation:
        documents["generation_config.json"] = whole.files.generation
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "tokenizer.json").write_text(whole.words.tokenizer, "utf-8")
    template, what = picture_template(replace(whole.files, directory=folder), whole.architecture, whole.spec)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return what


def _preprocessor(encoder: VisionHalf) -> Mapping[str, object] | None:
    """The encoder's own, with nothing left to a default: a LLaVA's are others. None where the encoder needs none."""
    own = encoder.files.preprocessor
    return None if own is None else {**encoder.encoder.claims.image_processor, **own}


def _processor(whole: Whole) -> dict[str, object]:
    """What transformers' own processor counts visual tokens by."""
    assert whole.spec.vision is not None
    return {
        "processor_class": "LlavaProcessor",
        "image_token": PLACEHOLDER,
        "patch_size": whole.spec.vision.patch,
        "num_additional_image_tokens": int(whole.spec.vision.class_token),
        "vision_feature_select_strategy": whole.files.config["vision_feature_select_strategy"],
    }


def _report(request: Request, language: Half, whole: Whole, template: str) -> str:
    def count(prefix: str) -> str:
        return f"{sum(part.count for part in whole.parts if part.name.startswith(prefix)):,} parameters"

    spec, words = whole.spec, whole.words
    assert spec.vision is not None
    rows, before = spec.decoder.vocab, language.files.tensors[language.names[EMBEDDING]].shape[0]
    grown = f", the embedding grown from {before:,} to {rows:,} rows" if rows > before else ""
    lines = [
        ("vision tower", f"{count('vision_tower.')} ({spec.encoder}, features of layer {spec.vision.layers})"),
        ("projector", f"{count('multi_modal_projector.')}, drawn with seed {request.seed}: it has to be trained"),
        ("language", f"{count('language_model.')} ({language.config['model_type']})"),
        ("a picture", f"{whole.picture_tokens} visual tokens"),
        (PLACEHOLDER, f"token {words.placeholder}, {'added' if words.added else 'known before'}{grown}"),
        ("chat template", template),
    ]
    table = "\n".join(f"{name:<15}{value}" for name, value in [("written", str(request.out)), *lines])
    return f"{table}\n\nServe it:\n\nopsin serve {shlex.quote(str(request.out))}"
