"""A small plain-torch definition of the original Qwen-VL (Bai et al. 2023, arXiv 2308.12966), used as a test oracle."""

import copy
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VISUAL_EPS = 1e-6

DEFAULT_VISUAL: dict[str, Any] = {
    "heads": 2,
    "image_size": 32,
    "image_start_id": 148,
    "layers": 2,
    "mlp_ratio": 1.5,
    "output_dim": 64,
    "patch_size": 4,
    "width": 32,
    "n_queries": 16,
    "positions": 16,
    "pool_head_dim": 16,
}

DEFAULTS: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "attn_dropout_prob": 0.0,
    "emb_dropout_prob": 0.0,
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 192,
    "kv_channels": 16,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 512,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "rotary_emb_base": 10000.0,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 24,
    "tie_word_embeddings": False,
    "tokenizer_type": "QWenTokenizer",
    "torch_dtype": "float32",
    "use_cache": True,
    "use_dynamic_ntk": True,
    "use_flash_attn": False,
    "use_logn_attn": True,
    "visual": DEFAULT_VISUAL,
    "vocab_size": 160,
}


class QwenVLConfig(SimpleNamespace):
    """The keys of the published config.json as attributes; `visual` stays a dict."""

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(vars(self))


@dataclass
class Output:
    logits: Tensor


def ntk_alpha(config: QwenVLConfig, prompt_length: int) -> float:
    if not config.use_dynamic_ntk or prompt_length <= config.seq_length:
        return 1.0
    return 2.0 ** math.ceil(math.log2(prompt_length / config.seq_length) + 1) - 1


def rotary_angles(config: QwenVLConfig, length: int, alpha: float, device: torch.device) -> Tensor:
    """Angles [T, d]: the d/2 frequencies twice over, since channel c is paired with channel c + d/2."""
    d = config.kv_channels
    base = config.rotary_emb_base * alpha ** (d / (d - 2))
    frequencies = base ** -(torch.arange(0, d, 2, dtype=torch.float32, device=device) / d)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    return torch.cat([angles, angles], dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)


def logn_scale(config: QwenVLConfig, length: int, device: torch.device) -> Tensor:
    """Factor of the query at every position [T]."""
    count = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    if not config.use_logn_attn:
        return torch.ones_like(count)
    return torch.where(count > config.seq_length, count.log() / math.log(config.seq_length), 1.0)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Softmax attention of [batch, heads, T, d], heads joined again on the way out: [batch, T, heads * d]."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def resize_table(table: Tensor, side: int) -> Tensor:
    """A square table of positions [n * n, C] resized to [side * side, C]."""
    own = math.isqrt(table.shape[0])
    if own * own != table.shape[0]:
        raise ValueError(f"a table of {table.shape[0]} positions is not square")
    if own == side:
        return table
    image = table.float().reshape(1, own, own, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(side * side, -1).to(table.dtype)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class TextAttention(nn.Module):
    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.c_attn = nn.Linear(size, 3 * size)
        self.c_proj = nn.Linear(size, size, bias=not config.no_bias)

    def forward(self, x: Tensor, angles: Tensor, query_scale: Tensor) -> Tensor:
        parts = self.c_attn(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q = rotate(q, angles) * query_scale[:, None].to(q.dtype)
        return self.c_proj(attend(q, rotate(k, angles), v, causal=True))


class TextMLP(nn.Module):
    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        # The published intermediate_size counts w1 and w2 together.
        inner, bias = config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(config.hidden_size, inner, bias=bias)
        self.w2 = nn.Linear(config.hidden_size, inner, bias=bias)
        self.c_proj = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class TextBlock(nn.Module):
    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = TextAttention(config)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = TextMLP(config)

    def forward(self, x: Tensor, angles: Tensor, query_scale: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), angles, query_scale)
        return x + self.mlp(self.ln_2(x))


class VisualAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # The rows stand head by head: each head's q, k and v lie together.
        split = self.in_proj(x).unflatten(-1, (self.heads, 3, -1))
        q, k, v = (split[..., part, :].transpose(1, 2) for part in range(3))
        return self.out_proj(attend(q, k, v, causal=False))


class VisualMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, inner)
        self.c_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class VisualBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=VISUAL_EPS)
        self.attn = VisualAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=VISUAL_EPS)
        self.mlp = VisualMLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class VisualBlocks(nn.Module):
    def __init__(self, visual: dict[str, Any]) -> None:
        super().__init__()
        width, heads, ratio = visual["width"], visual["heads"], visual["mlp_ratio"]
        self.resblocks = nn.ModuleList(VisualBlock(width, heads, ratio) for _ in range(visual["layers"]))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class Resampler(nn.Module):
    """Learned queries that read the patches by one cross-attention."""

    def __init__(self, visual: dict[str, Any]) -> None:
        super().__init__()
        size, count = visual["output_dim"], visual["n_queries"]
        self.query = nn.Parameter(torch.empty(count, size))
        self.pos_embed = nn.Parameter(torch.empty(count, size))
        self.kv_proj = nn.Linear(visual["width"], size, bias=False)
        self.attn = nn.MultiheadAttention(size, size // visual["pool_head_dim"], batch_first=True)
        self.ln_q = nn.LayerNorm(size, eps=VISUAL_EPS)
        self.ln_kv = nn.LayerNorm(size, eps=VISUAL_EPS)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.ln_kv(self.kv_proj(patches))
        q = (self.ln_q(self.query) + self.pos_embed).expand(x.shape[0], -1, -1)
        k = x + resize_table(self.pos_embed, math.isqrt(x.shape[1]))
        # Positions steer where the queries look; the values stay free of them.
        return self.attn(q, k, x, need_weights=False)[0]


class VisionTower(nn.Module):
    def __init__(self, visual: dict[str, Any]) -> None:
        super().__init__()
        width, size, patch = visual["width"], visual["output_dim"], visual["patch_size"]
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(visual["positions"], width))
        self.ln_pre = nn.LayerNorm(width, eps=VISUAL_EPS)
        self.transformer = VisualBlocks(visual)
        self.attn_pool = Resampler(visual)
        self.ln_post = nn.LayerNorm(size, eps=VISUAL_EPS)
        self.proj = nn.Parameter(torch.empty(size, size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [n, 3, S, S] to visual tokens [n, Q, H]."""
        grid = self.conv1(pixel_values.to(self.conv1.weight.dtype))
        x = grid.flatten(2).transpose(1, 2) + resize_table(self.positional_embedding, grid.shape[-1])
        x = self.attn_pool(self.transformer(self.ln_pre(x)))
        return self.ln_post(x) @ self.proj


class Transformer(nn.Module):
    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(TextBlock(config) for _ in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = VisionTower(config.visual)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None, prompt_length: int) -> Tensor:
        embeddings = self.wte(input_ids)
        if pixel_values is None:
            return embeddings
        tokens = self.visual(pixel_values).flatten(0, 1)
        places = (input_ids[0] == self.config.visual["image_start_id"] + 2).nonzero().flatten()
        used, surplus = places[: len(tokens)], places[len(tokens) :]
        # A placeholder id that the model itself generated is plain text; in the prompt it is a mistake.
        if len(used) < len(tokens) or bool((surplus < prompt_length).any()):
            raise ValueError(f"{len(places)} placeholders for {len(tokens)} visual tokens")
        return embeddings.index_copy(1, used, tokens[None])

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None, prompt_length: int) -> Tensor:
        length, device = input_ids.shape[1], input_ids.device
        angles = rotary_angles(self.config, length, ntk_alpha(self.config, prompt_length), device)
        query_scale = logn_scale(self.config, length, device)
        x = self.embed(input_ids, pixel_values, prompt_length)
        for block in self.h:
            x = block(x, angles, query_scale)
        return self.ln_f(x)


class QwenVLReference(nn.Module):
    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        if config.num_attention_heads * config.kv_channels != config.hidden_size:
            raise ValueError("num_attention_heads * kv_channels must be hidden_size")
        if config.visual["output_dim"] != config.hidden_size:
            raise ValueError("visual output_dim must be hidden_size")
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, prompt_length: int | None = None
    ) -> Output:
        prompt_length = input_ids.shape[1] if prompt_length is None else prompt_length
        return Output(self.lm_head(self.transformer(input_ids, pixel_values, prompt_length)))

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, max_new_tokens: int = 16, **ignored: Any
    ) -> Tensor:
        """Greedy ids [1, T + new]; further keywords (min_new_tokens, do_sample, eos_token_id) have no effect."""
        prompt_length, ids = input_ids.shape[1], input_ids
        for _ in range(max_new_tokens):
            logits = self(ids, pixel_values, prompt_length).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
        return ids


def fill(name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith((".query", ".pos_embed")):
        value = noise
    elif parameter.dim() > 1:
        value = noise * parameter[0].numel() ** -0.5
    elif name.endswith("bias"):
        value = 0.1 * noise
    else:
        value = 1 + 0.1 * noise
    parameter.data.copy_(value)


def make(seed: int = 0, **changes: Any) -> QwenVLReference:
    """A tiny random model; `changes` update the configuration, a `visual` dict among them its visual section."""
    values = copy.deepcopy(DEFAULTS) | changes
    values["visual"] = DEFAULT_VISUAL | changes.get("visual", {})
    model = QwenVLReference(QwenVLConfig(**values))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        fill(name, parameter, generator)
    return model.eval().requires_grad_(False)
