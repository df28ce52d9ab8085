"""The family: what a configuration means, and under which names its weights are published."""

import re
from collections.abc import Mapping, Sequence

from opsin_glimpse.encoder import Mixer
from opsin_plugins.families.base import Family, end_ids, llama_groups, renames, text_section, vision_groups
from opsin_plugins.families.config_fields import integer, section
from opsin_plugins.families.language import decoder_rules, decoder_spec, is_tied, max_positions
from opsin_plugins.spec import ModelFiles, ModelSpec, Pattern, ProjectorSpec, Rename, Rule

LANGUAGE, VISION, PROJECTOR = "model.language_model.", "model.vision.", "model.projector."


class Glimpse(Family):
    name = "glimpse"
    encoder = Mixer()

    def spec(self, files: ModelFiles) -> ModelSpec:
        vision = section(files.config, "vision_config")
        text, defaults = text_section(files.config)
        decoder = decoder_spec(text, is_tied(files, text), defaults)
        tower = self.encoder.spec(vision, files.preprocessor)
        image = self.encoder.image(tower, vision, files.preprocessor)
        return ModelSpec(
            family=self.name,
            decoder=decoder,
            vision=tower,
            projector=ProjectorSpec(tower.width, decoder.width, decoder.width, "gelu", merge=image.merge),
            image=image,
            fusion="gated_scatter",
            encoder=self.encoder.name,
            image_token=integer(files.config, "image_token_id"),
            eos=end_ids(files),
            max_positions=max_positions(text, defaults),
        )

    def weights(self, spec: ModelSpec) -> Sequence[Rule]:
        assert spec.vision is not None
        return [
            *decoder_rules(spec.decoder, LANGUAGE),
            *self.encoder.weights(spec.vision, VISION),
            *renames({f"{PROJECTOR}up": "projector.mlp.up", f"{PROJECTOR}down": "projector.mlp.down"}),
            Rename("model.gate", "fusion.gate"),
        ]

    def lora_groups(self, spec: ModelSpec) -> Mapping[str, Pattern]:
        return {
            **llama_groups(r"model\.language_model\.layers\.\d+\."),
            **vision_groups(self.encoder, VISION),
            "projector.mlp": re.compile(r"model\.projector\.(up|down)"),
        }

    def chat_template(self, files: ModelFiles) -> str | None:
        return TEMPLATE


TEMPLATE = """\
{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}
{%- else %}{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}
{%- endif %}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
