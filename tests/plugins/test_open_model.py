"""A model is opened in one way: with the plugins that are allowed, or with an error that says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from opsin_plugins.families.architectures.llava import Llava
from opsin_plugins.families.architectures.mistral3 import Mistral3
from opsin_plugins.families.base import Family
from opsin_plugins.loading.open_model import open_files, open_model
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import SpecError


def opened(family: Family, *allow: str) -> str:
    """The encoder of the family's example."""
    example = family.example()
    assert example is not None
    return str(open_files(example, Registry(allow or None)).spec.encoder)


@pytest.mark.parametrize(
    ("family", "allow", "said"),
    [
        (
            Llava(),
            ("llava", "scatter", "siglip"),
            "claims model_type 'clip_vision_model'; claimed are siglip_vision_model",
        ),
        (Llava(), ("llava", "clip"), "no fusion plugin is named 'scatter'; usable: none"),
        (Mistral3(), ("mistral3", "scatter"), "no vision encoder plugin is named 'pixtral'; usable: none"),
    ],
)
def test_an_allow_list_holds_for_what_a_family_names(family: Family, allow: tuple[str, ...], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        opened(family, *allow)
    assert said in str(refused.value)
    assert f"(--plugins allows {', '.join(sorted(allow))})" in str(refused.value)


def test_what_is_allowed_opens() -> None:
    assert opened(Llava(), "llava", "clip", "scatter") == opened(Llava()) == "clip"
    assert opened(Mistral3(), "mistral3", "pixtral", "scatter") == "pixtral"


def test_the_files_say_what_is_allowed() -> None:
    example = Llava().example()
    assert example is not None
    found = open_files(example, Registry(["llava", "clip", "scatter"]))
    assert found.files.plugins == {"llava", "clip", "scatter"}
    assert open_files(example, Registry()).files.plugins is None


def test_every_error_is_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    for directory, plugins in ((tmp_path / "absent", None), (tmp_path, None), (tmp_path, ["absent"])):
        with pytest.raises(SpecError, match=r"is not a directory|not an object|--plugins names absent"):
            open_model(directory, plugins)
