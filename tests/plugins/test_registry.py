"""Plugins are found by name, imported only when used, and a broken one stops nothing."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from opsin_plugins.families.architectures.text import TextModel
from opsin_plugins.families.encoders.clip import Clip
from opsin_plugins.loading.open_model import open_files
from opsin_plugins.loading.registry import GROUPS, PluginError, Registry
from opsin_plugins.spec import API_VERSION, EncoderSpec, ModelFiles, ModelSpec

CHANGED = "(docs/plugins.md ends with what has changed)"


class Good(TextModel):
    name = "good"


class Empty:
    api_version = API_VERSION
    name = "good"


class Failing(Good):
    def spec(self, files: ModelFiles) -> ModelSpec:
        raise ValueError("oops")


class Reads(Clip):
    name = "reads"
    claims = EncoderSpec(model_types=("seen", "mine"), checkpoint_types=("both",))


class AlsoReads(Reads):
    name = "also"
    claims = EncoderSpec(model_types=("seen",), checkpoint_types=("both",))


class Seen(Reads):
    name = "seen"


class ClaimsAWord(Clip):
    name = "word"
    claims = "clip_vision_model"


class FromTheFuture:
    api_version = API_VERSION + 1


def broken() -> object:
    raise RuntimeError("no such library [/for] this")


def leaving() -> object:
    raise SystemExit(3)


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("strangers_module")
    for member in (Good, Empty, Failing, Reads, AlsoReads, Seen, ClaimsAWord, FromTheFuture, broken, leaving):
        setattr(module, member.__name__, member)
    monkeypatch.setitem(sys.modules, "strangers_module", module)


def registry(*points: tuple[str, str], allow: list[str] | None = None) -> Registry:
    group = GROUPS["architecture"]
    entries = [EntryPoint(name, value, group) for name, value in points]
    return Registry(allow, lambda asked: entries if asked == group else [])


def encoders(*points: tuple[str, str], allow: list[str] | None = None) -> Registry:
    group = GROUPS["vision encoder"]
    entries = [EntryPoint(name, f"strangers_module:{value}", group) for name, value in points]
    return Registry(allow, lambda asked: entries if asked == group else [])


def files(**config: object) -> ModelFiles:
    return ModelFiles(Path(), config)


def test_what_is_installed_is_read_once_until_the_path_is_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each reading goes through the files of every distribution."""
    before, read = Registry().status(), []
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: read.append(group) or [])
    assert Registry().status() == before
    assert read == []
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Registry().status() == []
    assert sorted(read) == sorted(GROUPS.values())


def test_the_longest_claim_wins() -> None:
    found = registry(
        ("good", "absent_module:X"), ("good.special", "strangers_module:Good"), ("good.other", "absent_module:X")
    )
    assert isinstance(found.architecture(files(model_type="good", vision_config={"model_type": "special"})), Good)


def test_a_claim_by_a_key_of_the_configuration() -> None:
    found = registry(("qwen.visual", "strangers_module:Good"))
    assert isinstance(found.architecture(files(model_type="qwen", visual={})), Good)
    with pytest.raises(PluginError, match="no architecture plugin claims model_type 'qwen'"):
        found.architecture(files(model_type="qwen"))


def test_only_the_match_is_imported() -> None:
    found = registry(("good", "strangers_module:Good"), ("bad", "absent_module:X"))
    assert isinstance(found.architecture(files(model_type="good")), Good)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("absent_module:X", "failed to load: ModuleNotFoundError"),
        ("strangers_module:Absent", "failed to load: AttributeError"),
        ("strangers_module:broken", "failed to load: RuntimeError: no such library [/for] this"),
        ("strangers_module:leaving", "failed to load: SystemExit: 3"),
        ("strangers_module:Empty", "has no spec, weights, preprocess, expand"),
        ("strangers_module:FromTheFuture", f"written for api version {API_VERSION + 1}; this is {API_VERSION}"),
    ],
)
def test_a_broken_plugin_is_named_and_stops_nothing(value: str, said: str) -> None:
    found = registry(("bad", value), ("good", "strangers_module:Good"))
    errors = {row.name: row.error for row in found.status()}
    assert errors["good"] is None
    assert said in (errors["bad"] or "")
    with pytest.raises(PluginError, match="architecture 'bad'"):
        found.architecture(files(model_type="bad"))


def test_a_clash_is_an_error_for_that_name_alone() -> None:
    found = registry(
        ("good", "strangers_module:Good"), ("twice", "strangers_module:Good"), ("twice", "strangers_module:Good")
    )
    assert isinstance(found.architecture(files(model_type="good")), Good)
    with pytest.raises(PluginError, match="'twice' is claimed by 2 distributions"):
        found.architecture(files(model_type="twice"))
    assert sum(row.error is not None for row in found.status()) == 2


def test_faults_are_told_without_an_import() -> None:
    points = [
        ("good", "strangers_module:Good"),
        ("unloaded", "strangers_module:broken"),  # (only an import would tell)
        ("twice", "strangers_module:Good"),
        ("twice", "strangers_module:Good"),
        ("absent", "absent_module:X"),
        ("inner", "opsin_plugins.conformance.absent:X"),
        ("deep", "json.absent.deeper:X"),
        ("formless", "strangers_module"),
    ]
    before = set(sys.modules)
    found = registry(*points)
    assert isinstance(found.architecture(files(model_type="good")), Good)
    absent = {"absent": "absent_module", "deep": "json.absent", "inner": "opsin_plugins.conformance.absent"}
    told = {fault.split("'")[1]: fault for fault in found.faults()}
    assert told.keys() == {"absent", "deep", "formless", "inner", "twice"}
    for name, module in absent.items():
        assert told[name].endswith(f"failed to load: there is no module {module!r}")
    assert told["formless"].endswith("its entry point 'strangers_module' is not of the form module:class")
    assert "is claimed by 2 distributions" in told["twice"]
    assert set(sys.modules) == before


def test_what_was_tried_and_failed_is_a_fault() -> None:
    """A family asks which encoder reads a model_type: one that does not load might have been the better one."""
    found = encoders(("reads", "Reads"), ("bad", "broken"), ("newer", "FromTheFuture"))
    assert found.faults() == []
    assert isinstance(found.encoder_for("mine"), Reads)
    assert found.faults() == [
        "vision encoder 'bad' failed to load: RuntimeError: no such library [/for] this",
        f"vision encoder 'newer' is written for api version {API_VERSION + 1}; this is {API_VERSION} {CHANGED}",
    ]


def test_a_model_that_nobody_claims_names_what_failed_and_what_is_not_allowed() -> None:
    points = (("good", "strangers_module:Good"), ("other", "strangers_module:Good"), ("lost", "absent_module:X"))
    with pytest.raises(PluginError) as refused:
        registry(*points, allow=["other", "lost"]).architecture(files(model_type="good"))
    assert str(refused.value) == (
        "no architecture plugin claims model_type 'good'; 'good' of strangers_module:Good does, and --plugins leaves "
        "it out; usable: lost, other; architecture 'lost' of absent_module:X failed to load: there is no module "
        "'absent_module'"
    )


def test_an_allow_list_hides_the_rest() -> None:
    found = registry(("good", "strangers_module:Good"), ("other", "strangers_module:Good"), allow=["other"])
    with pytest.raises(PluginError, match="usable: other"):
        found.architecture(files(model_type="good"))


def test_an_allow_list_with_a_stranger_is_an_error() -> None:
    with pytest.raises(PluginError, match="--plugins names absent; installed are good"):
        registry(("good", "strangers_module:Good"), allow=["good", "absent"])


def test_an_encoder_is_found_by_what_it_claims() -> None:
    found = encoders(("reads", "Reads"), ("broken", "broken"))
    assert isinstance(found.encoder_for("mine"), Reads)
    assert isinstance(found.find_encoder("both", part=True), Reads)
    assert found.find_encoder("both") is None
    assert found.find_encoder("mine", part=True) is None


def test_what_no_encoder_claims_is_named_with_those_that_failed() -> None:
    found = encoders(("reads", "Reads"), ("bad", "broken"), allow=["reads", "bad"])
    with pytest.raises(PluginError) as refused:
        found.encoder_for("unseen")
    assert str(refused.value) == (
        "no vision encoder plugin claims model_type 'unseen'; claimed are mine, seen (--plugins allows bad, reads); "
        "vision encoder 'bad' failed to load: RuntimeError: no such library [/for] this"
    )


def test_two_encoders_that_claim_one_are_an_error_for_it_alone() -> None:
    found = encoders(("reads", "Reads"), ("also", "AlsoReads"))
    with pytest.raises(PluginError, match="model_type 'seen' is claimed by 2 vision encoders: also, reads"):
        found.encoder_for("seen")
    with pytest.raises(PluginError, match="model_type 'both' is claimed by 2"):
        found.find_encoder("both", part=True)
    assert found.encoder_for("mine").name == "reads"
    assert encoders(("reads", "Reads"), ("also", "AlsoReads"), allow=["also"]).encoder_for("seen").name == "also"


def test_an_encoder_of_the_very_name_comes_first() -> None:
    assert isinstance(encoders(("also", "AlsoReads"), ("seen", "Seen")).encoder_for("seen"), Seen)


def test_claims_that_are_none_and_another_name_are_errors() -> None:
    errors = {row.name: row.error for row in encoders(("word", "ClaimsAWord"), ("other", "Reads")).status()}
    assert errors["word"] == "vision encoder 'word': claims is a str, not an EncoderSpec"
    assert errors["other"] == "vision encoder 'other' calls itself 'reads'"


def test_every_built_in_loads() -> None:
    rows = Registry().status()
    assert {(r.kind, r.name) for r in rows} >= {
        ("architecture", "qwen2_vl"),
        ("architecture", "llava"),
        ("vision encoder", "clip"),
        ("fusion", "scatter"),
    }
    assert [r for r in rows if r.error] == []


def test_a_plugin_that_raises_anything_is_named_with_the_directory() -> None:
    with pytest.raises(PluginError, match=r"architecture 'good' cannot describe \.: ValueError: oops"):
        open_files(files(model_type="good"), registry(("good", "strangers_module:Failing")))
