"""adapter_config.json: scales as PEFT computes them, and every field that cannot be served refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from opsin_server.adapters.peft_config import ACTING, HARMLESS, REFUSED, PeftConfig, read_config
from opsin_server.adapters.problems import BadAdapter
from support import peft, tiny

# What exporters write into it beside PEFT's defaults.
UNSLOTH = {
    "auto_mapping": {"base_model_class": "Qwen2VLForConditionalGeneration", "unsloth_fixed": True},
    "base_model_name_or_path": "unsloth/Qwen2-VL-2B-Instruct-bnb-4bit",
    "target_modules": "(?:.*?(?:vision|image|visual|patch).*?(?:attn|mlp).*?(?:qkv|proj|fc1|fc2).*?)",
    "lora_dropout": 0,
}
SWIFT = {"lora_dtype": None, "lorap_emb_lr": 1e-06, "lorap_lr_ratio": None, "modules_to_save": []}
LLAMA_FACTORY = {"task_type": "CAUSAL_LM", "inference_mode": True, "lora_dropout": 0.05}
OLD = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
}


@pytest.mark.parametrize(
    "extra", [{}, UNSLOTH, SWIFT, LLAMA_FACTORY], ids=["PEFT", "Unsloth", "swift", "LLaMA-Factory"]
)
def test_defaults_and_what_exporters_add_are_served(extra: dict[str, Any]) -> None:
    fields = json.loads(json.dumps(LoraConfig(r=16, lora_alpha=32).to_dict(), default=str))
    assert read_config({**fields, **extra, "peft_type": "LORA"}) == PeftConfig(
        16, 32.0, base_model=extra.get("base_model_name_or_path")
    )


def test_a_file_of_early_days_is_served() -> None:
    assert read_config(OLD) == PeftConfig(8, 16.0)


def test_every_field_that_peft_has_is_known() -> None:
    """One that a later version adds is refused where it is set, until somebody has looked at it."""
    assert set(LoraConfig().to_dict()) <= HARMLESS | ACTING | set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadAdapter, match=rf"{name} is .*, which is not served"):
        read_config({**OLD, name: "all" if name == "bias" else True})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not served"),
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map is .*, which is not served"),
        ({"use_something_new": 1}, "use_something_new is 1, which is not served: this version does not know"),
        ({"r": 0}, "r is 0, not a rank"),
        ({"r": True}, "r is True"),
        ({"r": "16"}, "r is '16'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head', not a list"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] is 0"),
        ({"alpha_pattern": {"q_proj": "8"}}, r"alpha_pattern\['q_proj'\] is '8'"),
        ({"alpha_pattern": {"(": 8}}, r"alpha_pattern has '\(', a pattern that is not read"),
        ({"alpha_pattern": {r"(a)\1": 8}}, "a pattern that is not read"),
        ({"rank_pattern": [1]}, "rank_pattern is no object"),
        *[({"init_lora_weights": f"{start}"}, "over the published base the answers would be wrong")
          for start in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga")],
        ({"init_lora_weights": "something"}, "init_lora_weights is 'something', which this version does not know"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(BadAdapter, match=why):
        read_config({**OLD, **fields})


def test_all_reasons_are_listed() -> None:
    with pytest.raises(BadAdapter) as caught:
        read_config({**OLD, "use_dora": True, "bias": "all", "init_lora_weights": "pissa", "r": -1})
    assert len(caught.value.problems) == 4


def test_scales_and_ranks_are_those_of_peft(tmp_path: Path) -> None:
    made = peft.make(
        tiny.qwen2_vl(),
        tmp_path,
        0,
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"q_proj": 7, r"^model.visual.blocks.\d+.attn.proj": 3, "layers.1.mlp.up_proj": 5},
        alpha_pattern={r"layers\.[12]\..*v_proj": 11, "attn.qkv": 2.5, "mlp.fc[12]": 9},
    )
    config = read_config(json.loads((tmp_path / "adapter_config.json").read_text()))
    count = 0
    for name, module in made.model.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and module.r:
            count += 1
            assert config.rank_of(name) == module.r["default"], name
            assert config.scale_of(name) == pytest.approx(module.scaling["default"]), name
    assert count > 20


def test_a_pattern_takes_no_time_to_fail() -> None:
    """Backtracking would take longer than the universe has."""
    config = read_config({**OLD, "alpha_pattern": {"(a*)*(a*)*(a*)*b": 1.0, "(.*.*)*x{40}": 2.0}})
    assert config.scale_of("a" * 4000) == 2.0


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(HARMLESS | ACTING | set(REFUSED) | {"other"})),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_any_object_is_read_or_refused(document: dict[str, Any]) -> None:
    try:
        config = read_config(document)
    except BadAdapter:
        return
    assert config.rank_of("model.layers.0.self_attn.q_proj") > 0
