"""Directories of tiny models as people have them: as published, saved again by transformers 5, in the Hub's cache, and
among what a training leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from support import mistral_format, qwen_vl_reference, tiny
from support.repositories.base import STEPS, Json, Repository
from support.repositories.catalogue import repositories

PIXTRAL = "mistral-community/pixtral-12b"  # whose weights Mistral's own form has as well
COMMIT = "a5ec1f7b3d9c2e4860f1b7a9c8d6e5f403122130"


def make_model(repository: Repository) -> Any:
    """A random model of transformers by the repository's configuration, with values that bfloat16 has."""
    model = qwen_vl_reference.make(**repository.config) if repository.family == "qwen" else _their_model(repository)
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.bfloat16().float())
    return model


def _their_model(repository: Repository) -> Any:
    config = repository.config or repositories()[PIXTRAL].config
    auto = hf.AutoModelForImageTextToText if "vision_config" in config else hf.AutoModelForCausalLM
    model = auto.from_config(_configuration(config), dtype=torch.float32)
    return tiny.shaken(model, scale=1.5 if repository.family == "mllama" else 1.0)


def _configuration(config: Json) -> Any:
    made = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    for part in (made, made.get_text_config()):  # (transformers 5 ties some heads where nothing is said)
        part.tie_word_embeddings = is_tied(config)
    return made


def is_tied(config: Json) -> bool:
    """Whether the published weights have no head of their own, which is what these configurations say."""
    return any(part.get("tie_word_embeddings") is True for part in (config, config.get("text_config", {})))


def write(repository: Repository, model: Any, directory: Path) -> Path:
    """As published."""
    directory.mkdir(parents=True)
    if repository.config:
        put(directory, "config.json", repository.config)
    for name, content in {**repository.words.files, **repository.files}.items():
        put(directory, name, content)
    if repository.shards is not None:
        _weights(directory, tiny.named(model), repository)
    if repository.consolidated:
        state = {key: tensor.bfloat16() for key, tensor in mistral_format.named(model).items()}
        save_file(state, directory / "consolidated.safetensors")
    return directory


def _weights(directory: Path, state: Mapping[str, Tensor], repository: Repository) -> None:
    stem = "pytorch_model" if repository.family == "qwen" else "model"  # (converted from what was published)
    state = {key: tensor.bfloat16() for key, tensor in state.items()}
    if not repository.shards:
        save_file(state, directory / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    names, total = sorted(state), repository.shards
    weight_map = {}
    for i in range(total):
        file = f"{stem}-{i + 1:05}-of-{total:05}.safetensors"
        part = {name: state[name] for name in names[i::total]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in state.values())
    if stem == "model":
        put(directory, "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})
    else:
        bins = {key: file.replace("safetensors", "bin") for key, file in weight_map.items()}
        put(directory, "pytorch_model.bin.index.json", {"metadata": {"total_size": size}, "weight_map": bins})
        for file in set(bins.values()):
            put(directory, file, b"PK\3\4")


def put(directory: Path, name: str, content: str | bytes | Json) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))


def in_hub_cache(source: Path, name: str, cache: Path) -> Path:
    """The snapshot of a repository in the cache of huggingface_hub: links to files that are called by their digests."""
    entry = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = entry / "snapshots" / COMMIT, entry / "blobs"
    for folder in (snapshot, blobs, entry / "refs", entry / ".no_exist" / COMMIT):
        folder.mkdir(parents=True)
    (entry / "refs" / "main").write_text(COMMIT)
    (entry / ".no_exist" / COMMIT / "adapter_config.json").touch()
    for path in sorted(source.rglob("*")):
        if path.is_file():
            blob, link = blobs / hashlib.sha256(path.read_bytes()).hexdigest(), snapshot / path.relative_to(source)
            shutil.copyfile(path, blob)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(*[".."] * len(link.relative_to(entry).parts[:-1]), "blobs", blob.name))
    return snapshot


def after_training(source: Path, target: Path) -> Path:
    """A copy with what Trainer, PEFT, DeepSpeed and their users leave in such a folder."""
    shutil.copytree(source, target)
    garbage = {"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}
    for folder in (target, target / "checkpoint-100"):
        folder.mkdir(exist_ok=True)
        save_file(garbage, folder / "adapter_model.safetensors")
        put(folder, "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": str(source), "r": 2})
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin"):
            put(folder, name, b"PK\3\4")
        put(folder, "trainer_state.json", {"global_step": 100})
    save_file(garbage, target / "checkpoint-100" / "model.safetensors")
    put(target, "checkpoint-100/config.json", {"model_type": "bert"})
    put(target, "checkpoint-100/chat_template.jinja", "another")
    put(target, "global_step100/mp_rank_00_model_states.pt", b"PK\3\4")
    put(target, "runs/Nov29_10-00-00_host/events.out.tfevents.1.host.1.0", b"\0")
    put(target, "wandb/run-1/files/config.yaml", "a: 1\n")
    put(target, "all_results.json", {"train_loss": 1.0})
    put(target, "latest", "global_step100")
    put(target, "zero_to_fp32.py", "raise SystemExit('this must not run')\n")
    return target


# What image processors of transformers 4.57 ("Fast") write beside what they were told.
UNSAID = {
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "disable_grouping": None,
    "do_center_crop": None,
    "do_pad": None,
    "input_data_format": None,
    "pad_size": None,
    "return_tensors": None,
}


VIDEO_PROCESSORS = {
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
}


def video_settings(directory: Path) -> Json:
    """What a version that has read the directory saves of its video processor; of families whose videos are not served,
    something."""
    kind = VIDEO_PROCESSORS.get(json.loads((directory / "config.json").read_text())["model_type"])
    if kind is None:
        return {"video_processor_type": "SomeVideoProcessor", "size": {"shortest_edge": 1, "longest_edge": 1}}
    files = (directory / f"{name}_config.json" for name in ("video_preprocessor", "preprocessor"))
    said = json.loads(next(file for file in files if file.is_file()).read_text())
    said.pop("image_processor_type", None)
    return {**UNSAID, **STEPS, "resample": 3, "rescale_factor": 1 / 255, **said, "video_processor_type": kind}


def saved_by_4_57(repository: Repository, source: Path, target: Path) -> Path:
    """As transformers 4.57 saved it: every field of a configuration, text apart from vision, nulls in the settings of
    pictures, the template in a file of its own."""
    shutil.copytree(source, target)
    put(target, "config.json", _config_of_4_57(_configuration(repository.config).to_dict()))
    settings = target / "preprocessor_config.json"
    if settings.is_file():
        said = json.loads(settings.read_text())
        kind = said["image_processor_type"].removesuffix("Fast") + "Fast"
        said = {**UNSAID, **STEPS, "resample": 3, "rescale_factor": 1 / 255, **said, "image_processor_type": kind}
        if "min_pixels" in said:
            said["size"] = {"shortest_edge": said["min_pixels"], "longest_edge": said["max_pixels"]}
        put(target, settings.name, said)
        put(target, "video_preprocessor_config.json", video_settings(source))
    tokenizer = json.loads((target / "tokenizer_config.json").read_text())
    template = tokenizer.pop("chat_template", None)
    put(target, "tokenizer_config.json", tokenizer)
    legacy = target / "chat_template.json"
    if legacy.is_file():
        template = json.loads(legacy.read_text())["chat_template"]
        legacy.unlink()
    put(target, "chat_template.jinja", template)
    return target


def _config_of_4_57(config: Json) -> Json:
    """Positions in two fields, where transformers 5 has one."""
    config = {key: _config_of_4_57(value) if isinstance(value, dict) else value for key, value in config.items()}
    if "rope_parameters" in config:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        plain = rope == {"rope_type": "default"}
        config["rope_scaling"] = None if plain else {**rope, "type": rope["rope_type"]}
    return config
