"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: the form of their configuration, names, M-RoPE and ChatML."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from opsin_plugins.families.base import Family, end_ids, llama_groups, renames, vision_groups
from opsin_plugins.families.config_fields import integer, section
from opsin_plugins.families.encoders.qwen2_vl import Qwen2VLEncoder
from opsin_plugins.families.language import TextDefaults, decoder_rules, decoder_spec, is_tied, max_positions
from opsin_plugins.families.positions import Written, mrope, write_images
from opsin_plugins.families.videos import plan_video, video_patches
from opsin_plugins.spec import (
    I32,
    Clip,
    Config,
    Encode,
    Expanded,
    ModelFiles,
    ModelSpec,
    Pattern,
    Prefix,
    ProjectorSpec,
    Rule,
    SpecError,
    TowerSpec,
    VideoBudget,
    VideoPlan,
    VideoSource,
    VideoSpec,
    VisualItem,
)

VIDEO_TOKEN = 151656
TEXT = TextDefaults(8192, 80, 64, 8, 29568, 152064, 1e-5, 1e6, 32768, qkv_bias=True, slides="if asked")


class Qwen2Style(Family):
    name: ClassVar[str]
    encoder: ClassVar[Qwen2VLEncoder]
    merger_mlp: ClassVar[str] = r"model\.visual\.merger\.mlp\.[02]"
    merger_norm: ClassVar[tuple[str, ...]]  # tensors of the norm before the merger
    width_key: ClassVar[str]  # where the vision configuration says what the merger gives
    text: ClassVar[TextDefaults] = TEXT
    fusion: ClassVar[str] = "scatter"
    default_system: ClassVar[bool] = True  # whether its prompts begin with a system message where none is given

    @abstractmethod
    def projector(self, tower: TowerSpec, merge: int, width: int) -> ProjectorSpec:
        """width: the decoder's."""

    def spec(self, files: ModelFiles) -> ModelSpec:
        config = files.config
        nested = config.get("text_config")
        text: Config = nested if isinstance(nested, Mapping) else config  # 4.x wrote the text fields at the top
        vision_config = section(config, "vision_config", {})
        tower = self.encoder.spec(vision_config, files.preprocessor)
        image = self.encoder.image(tower, vision_config, files.preprocessor)
        tied = is_tied(files, text)
        decoder = decoder_spec(text, tied, self.text, mrope=True)
        width = integer(vision_config, self.width_key, decoder.width)
        if width != decoder.width:
            raise SpecError(f"the tower gives {width} values a visual token, the decoder takes {decoder.width}")
        video_token = integer(config, "video_token_id", VIDEO_TOKEN, least=0)
        video, no_video = self._video(files, tower, vision_config)
        if video_token >= decoder.embeddings:
            video, no_video = None, f"there is no token {video_token}, which would stand for one (video_token_id)"
        return ModelSpec(
            family=self.name,
            decoder=decoder,
            vision=tower,
            projector=self.projector(tower, image.merge, decoder.width),
            image=image,
            fusion=self.fusion,
            encoder=self.encoder.name,
            image_token=integer(config, "image_token_id", 151655, least=0),
            eos=end_ids(files),
            max_positions=max_positions(text, self.text),
            video=video,
            video_token=None if video is None else video_token,
            no_video=no_video,
        )

    def _video(self, files: ModelFiles, tower: TowerSpec, vision_config: Config) -> tuple[VideoSpec | None, str]:
        """What is wrong with it is told to who sends a video: it keeps nobody from pictures."""
        said = files.preprocessor if files.video_preprocessor is None else files.video_preprocessor
        try:
            return self.encoder.video(tower, vision_config, said), ""
        except SpecError as error:
            return None, str(error)

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.vision is not None
        return [
            Prefix("visual.", "model.visual."),
            Prefix("model.layers.", "model.language_model.layers."),
            Prefix("model.embed_tokens.", "model.language_model.embed_tokens."),
            Prefix("model.norm.", "model.language_model.norm."),
            *decoder_rules(spec.decoder, "model.language_model."),
            *self.encoder.weights(spec.vision, "model.visual."),
            *self.merger_rules(),
        ]

    def merger_rules(self) -> list[Rule]:
        linears = {"model.visual.merger.mlp.0": "projector.mlp.up", "model.visual.merger.mlp.2": "projector.mlp.down"}
        return [*renames({"model.visual.merger.ln_q": "projector.norm"}, self.merger_norm), *renames(linears)]

    def plan_video(self, source: VideoSource, spec: ModelSpec, budget: VideoBudget) -> VideoPlan:
        assert spec.video is not None
        return plan_video(source, spec.video, budget)

    def preprocess_video(self, clip: Clip, spec: ModelSpec) -> VisualItem:
        assert spec.video is not None
        pixels, grid = video_patches(clip.frames, spec.video)
        return VisualItem(pixels, grid, clip.plan.tokens, video=clip.plan)

    def expand(self, ids: Sequence[int], items: Sequence[VisualItem], spec: ModelSpec, encode: Encode) -> Expanded:
        assert spec.image_token is not None

        def write(item: VisualItem) -> Written:
            if item.video is not None:
                return self.write_video(item, item.video, spec, encode)
            return [spec.image_token or 0] * item.tokens, None

        return write_images(ids, items, spec.image_token, write, spec.video_token)

    def write_video(self, item: VisualItem, plan: VideoPlan, spec: ModelSpec, encode: Encode) -> Written:
        """What stands in the prompt in place of a video's placeholder."""
        assert spec.video_token is not None
        return [spec.video_token] * item.tokens, None

    def positions(self, expanded: Expanded, items: Sequence[VisualItem], spec: ModelSpec) -> tuple[I32, int]:
        assert spec.image is not None
        return mrope(expanded, items, spec.image.merge, 0 if spec.video is None else spec.video.ticks_per_second)

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return {
            **llama_groups(r"model\.language_model\.layers\.\d+\."),
            **vision_groups(self.encoder, "model.visual."),
            "projector.mlp": re.compile(self.merger_mlp),
        }

    def chat_template(self, files: ModelFiles) -> str | None:
        return (DEFAULT_SYSTEM if self.default_system else "") + CHATML


DEFAULT_SYSTEM = """\
{%- if not messages or messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
"""
# Written for directories without a template: ChatML with an image or a video where the message has one.
CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
