"""The torch half of the encoder, which only the engine imports: an MLP-Mixer. Source: arXiv 2105.01601."""

from collections.abc import Sequence

from torch import Tensor, nn

from opsin_plugins.blocks.layers import LayerNorm, PlainMLP
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.tower import Picture, Stem
from opsin_plugins.spec import TowerSpec


class MixerLayer(nn.Module):
    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        n, width, hidden = spec.positions, spec.width, spec.mlp
        self.token_norm, self.channel_norm = (LayerNorm(width, spec.norm_eps) for _ in range(2))
        self.token_mlp = PlainMLP(n, hidden, n, spec.activation, True)
        self.channel_mlp = PlainMLP(width, hidden, width, spec.activation, True)
        self.patches = n

    def forward(self, x: Tensor, lora: Lora | None) -> Tensor:
        """x [P·n, width]: the n patches of each of P pictures."""
        across = self.token_norm(x).view(-1, self.patches, x.shape[1]).transpose(1, 2)  # [P, width, n]
        mixed = self.token_mlp(across.flatten(0, 1), None).view(across.shape)  # (a row here is no patch: no adapter)
        x = x + mixed.transpose(1, 2).reshape(x.shape)
        return x + self.channel_mlp(self.channel_norm(x), lora)


class MixerTower(nn.Module):
    def __init__(self, spec: TowerSpec, merge: int) -> None:
        super().__init__()
        self.patch = Stem(spec)
        self.layers = nn.ModuleList(MixerLayer(spec) for _ in range(spec.layers))

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        return [rows * columns for _, rows, columns in (picture.grid for picture in pictures)]

    def forward(self, pixels: Tensor, pictures: Sequence[Picture], lora: Lora | None = None) -> Tensor:
        x = self.patch(pixels)
        for layer in self.layers:
            x = layer(x, lora)
        return x
