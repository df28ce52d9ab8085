"""A published model with random weights, made on the device, behind the server's own engine."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from image_tokens import files_of
from torch import nn

from opsin_kernels.dispatch import implementation
from opsin_kernels.kv_rows import KINDS
from opsin_plugins.blocks.activation_policy import ActivationPolicy
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.blocks.stored_bytes import stored_bytes
from opsin_plugins.blocks.weight_format import Dense, WeightFormat
from opsin_plugins.blocks.weight_formats import Groups
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ImageBudget, ModelFiles, ModelSpec, VisualItem
from opsin_server.config import EngineConfig, KvDType, image_limit
from opsin_server.engine.engine import Engine
from opsin_server.engine.running.cuda_graphs import DecodeGraphs
from opsin_server.engine.startup.assemble import assemble
from opsin_server.engine.startup.device import free_bytes
from opsin_server.engine.startup.inspect_checkpoint import largest_image
from opsin_server.engine.startup.memory_plan import ModelNeeds, ResolvedConfig, resolve
from opsin_server.engine.startup.warmup import made_up_request, warmup
from opsin_server.ipc.messages import Arrays, Sampling, Submit

W8A8 = " w8a8"
Size = Literal["whole", "shallow", "tiny"]
# shallow: the published widths, so that the same kernels are launched, in as few layers as the family can have.
SHALLOW: Mapping[str, Any] = {
    "num_hidden_layers": 2, "depth": 1, "cross_attention_layers": [1], "num_global_layers": 1,
    "intermediate_layers_indices": [0], "vision_output_dim": 2560,
}  # fmt: skip
TINY: Mapping[str, Any] = SHALLOW | {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
    "image_token_id": 290, "image_token_index": 290, "vision_start_token_id": 291, "vision_end_token_id": 292,
    "vision_token_id": 293, "video_token_id": 294, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "embed_dim": 32, "num_heads": 2, "attention_heads": 2, "vision_output_dim": 64,
}  # fmt: skip
BATCH_TOKENS = {"whole": 8192, "shallow": 8192, "tiny": 64}


def label_of(name: str, form: str) -> str:
    """Of a model's rows."""
    return name if form == Dense.name else f"{name} in {form}"


def with_sizes(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A published configuration with other sizes."""
    found = {k: with_sizes(v, sizes) if isinstance(v, dict) else sizes.get(k, v) for k, v in config.items()}
    if sizes is TINY and "mrope_section" in found:
        found["mrope_section"] = [2, 3, 3]
    if sizes is TINY and "embed_dim" in found:
        found["hidden_size"] = TINY["hidden_size"]
    elif sizes is TINY and "supported_aspect_ratios" in found:
        found |= {"hidden_size": 32, "intermediate_size": 48, "image_size": 56}
    return found


def files(name: str, size: Size) -> ModelFiles:
    found = files_of(name)
    if size == "whole":
        return found
    config, preprocessor = with_sizes(found.config, TINY if size == "tiny" else SHALLOW), dict(found.preprocessor)
    if size == "tiny" and "max_image_tiles" in preprocessor:
        preprocessor["size"] = {"height": 56, "width": 56}
    return replace(found, config=config, preprocessor=preprocessor)


class RandomModel:
    """form: what the weights of its linears are stored as, with " w8a8" behind it what activations are as well;
    kv_dtype: keys and values."""

    def __init__(
        self,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        size: Size,
        form: str = Dense.name,
        kv_dtype: KvDType = "auto",
    ) -> None:
        self.name, self.device, self.dtype, self.size, self.count = name, device, dtype, size, 0
        self.label = label_of(name, form)
        self.kv_dtype = kv_dtype
        self.batch_tokens = BATCH_TOKENS[size]
        of, registry = files(name, size), Registry()
        self.architecture = registry.architecture(of)
        self.spec: ModelSpec = self.architecture.spec(of)
        self.linears = linears_of(self.spec, registry)
        kinds = frozenset(KINDS) if form.endswith(W8A8) else frozenset[str]()
        policy = WeightPolicy(form.removesuffix(W8A8), vision=True, activations=ActivationPolicy(kinds, always=True))
        self.model: Model = build_model(self.spec, registry, device=device, dtype=dtype, policy=policy)
        std = 0.2 if size == "tiny" else 0.02  # (narrow layers must matter, too)
        with torch.no_grad():
            for parameter in self.model.parameters():
                nn.init.normal_(parameter, std=std)
            for module in self.model.modules():
                if isinstance(module, Groups):
                    module.fill(0, std * torch.randn(module.outputs, module.inputs, device=device))

    def engine(self, sequences: int, context: int, captured: bool) -> Engine:
        """captured: its decode steps, where the device can; without one they run on a capture's fixed buffers."""
        config, resolved = self._resolved(sequences, context, captured)
        engine = assemble(self.model, self.linears, config, resolved)
        if captured and self.device.type != "cuda":  # on fixed buffers, as a capture runs them
            runner = engine.runner
            runner.graphs = DecodeGraphs(
                self.model,
                runner.pool,
                sequences,
                context,
                lambda run: run,
                runner.cross_kv,
            )
        return engine

    def warm(self) -> None:
        """Compiles every kernel that serving launches, as a server does before its first request."""
        if implementation(self.device.type) != "torch":
            config, resolved = self._resolved(1, 512, captured=False)
            warmup(self.model, self.architecture, self.linears, config, resolved)

    @property
    def parameters(self) -> int:
        codes = (module for module in self.model.modules() if isinstance(module, Groups))
        return sum(p.numel() for p in self.model.parameters()) + sum(c.inputs * c.outputs for c in codes)

    def _resolved(self, sequences: int, context: int, captured: bool) -> tuple[EngineConfig, ResolvedConfig]:
        config = EngineConfig(
            model="", device=self.device.type, max_sequences=sequences, max_context=context,
            max_batch_tokens=self.batch_tokens, prefix_cache=False, eager=not captured,
            kv_dtype=self.kv_dtype,
        )  # fmt: skip
        gc.collect()  # an engine before this one holds its pool in a circle
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        weights = sum(stored_bytes(self.model).values())
        limit = image_limit(None, context)
        largest = largest_image(self.architecture, self.spec, limit)
        needs = ModelNeeds(self.spec, self.linears, weights, self.dtype, limit, largest)
        return config, resolve(config, needs, self.device, free_bytes(self.device) + weights)

    def request(self, text: int, edges: Sequence[int], count: int, sampling: Sampling) -> tuple[Submit, Arrays]:
        """A prompt of random tokens behind random pictures, which is answered with `count` tokens."""
        self.count += 1
        return made_up_request(self.architecture, self.spec, str(self.count), text, edges, count, sampling)

    def pictures(self, edge: int) -> list[VisualItem]:
        """What one picture of edge x edge becomes; none for 0."""
        if not edge:
            return []
        return list(self.architecture.preprocess([np.zeros((edge, edge, 3), np.uint8)], self.spec, ImageBudget()))

    def floor(self, rows: int, own: int, visual: int, sequences: int, rates: tuple[float, float]) -> float:
        """Milliseconds of a decoder pass over `rows` rows of some sequences: every weight is read once, every key and
        value once; two operations a weight and row. own, visual: cached rows of all sequences together."""
        decoder, (bandwidth, rate) = self.spec.decoder, rates
        weights = _weights(self.model.decoder) + ([] if self.model.fusion is None else _weights(self.model.fusion))
        if not decoder.tied:
            weights.remove(self.model.decoder.embedding.stored)
        linears = sum(w.inputs * w.outputs for w in weights)
        read = own * decoder.own_layers + visual * len(decoder.replaced)
        moved = sum(w.bytes for w in weights) + 2 * decoder.kv_heads * decoder.head_dim * self.dtype.itemsize * read
        head = decoder.vocab * decoder.width
        work = 2 * ((linears - head) * rows + head * sequences)
        queries, before = rows / sequences, own / sequences - rows / sequences
        pairs = rows * (before + (queries + 1) / 2) * decoder.own_layers  # each row sees those before it, and itself
        work += 4 * (pairs + visual * queries * len(decoder.replaced)) * decoder.heads * decoder.head_dim
        return 1e3 * max(moved / bandwidth, work / rate)

    def vision_floor(self, items: Sequence[VisualItem], rate: float) -> float:
        """Milliseconds of the tower's products and of its attention, each patch of a picture to each."""
        tower = self.spec.vision
        assert tower is not None
        patches = sum(len(item.pixels) for item in items)
        assert isinstance(self.model.vision, nn.Module)
        weights = sum(w.inputs * w.outputs for w in _weights(self.model.vision))
        return 1e3 * (2 * weights * patches + 4 * patches**2 * tower.width * tower.layers) / rate


def _weights(module: nn.Module) -> list[WeightFormat]:
    return [one for one in module.modules() if isinstance(one, WeightFormat)]
