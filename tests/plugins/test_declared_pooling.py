"""What a checkpoint says of its embeddings is read, or refused in a sentence; nothing outside of it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opsin_plugins.loading.declared_pooling import DeclaredPooling, declared_cuts, declared_pooling
from opsin_plugins.spec import SpecError

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


def written(directory: Path, modules: Any, pooling: Any = None) -> Path:
    (directory / "1_Pooling").mkdir()
    (directory / "modules.json").write_text(modules if isinstance(modules, str) else json.dumps(modules))
    if pooling is not None:
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return directory


@pytest.mark.parametrize(
    ("modules", "pooling", "expected"),
    [
        ([TRANSFORMER, POOLING, NORMALIZE], {"pooling_mode_lasttoken": True}, DeclaredPooling("last", True)),
        (
            [TRANSFORMER, POOLING],
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True},
            DeclaredPooling("mean", False),
        ),
        ([TRANSFORMER, POOLING], {"pooling_mode": "cls"}, DeclaredPooling("cls", False)),
    ],
)
def test_pooling_is_read(tmp_path: Path, modules: Any, pooling: Any, expected: DeclaredPooling) -> None:
    assert declared_pooling(tmp_path) is None
    assert declared_pooling(written(tmp_path, modules, pooling)) == expected


@pytest.mark.parametrize(
    ("modules", "pooling", "says"),
    [
        ("[", None, "is not JSON"),
        ("[" * 100_000, None, "is not JSON"),
        ({"a": 1}, None, "is no list of modules"),
        ([TRANSFORMER], None, "names no pooling"),
        ([TRANSFORMER, POOLING], None, "has no config.json"),
        ([TRANSFORMER, {**POOLING, "path": "../1_Pooling"}], {}, "is no folder of the checkpoint"),
        ([TRANSFORMER, {**POOLING, "path": ".."}], {}, "is no folder of the checkpoint"),
        ([TRANSFORMER, {**POOLING, "path": 5}], {}, "is no folder of the checkpoint"),
        ([TRANSFORMER, POOLING], {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens is not supported"),
        ([TRANSFORMER, POOLING], {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "not supported"),
        ([TRANSFORMER, POOLING], {"pooling_mode": "weightedmean"}, "'weightedmean' is not one of"),
        ([TRANSFORMER, POOLING], {}, "no pooling_mode is not supported"),
        ([TRANSFORMER, POOLING, {"type": "sentence_transformers.models.Dense"}], {"pooling_mode": "cls"}, "'Dense'"),
    ],
)
def test_what_is_not_done_is_refused(tmp_path: Path, modules: Any, pooling: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        declared_pooling(written(tmp_path, modules, pooling))


def test_cuts_are_those_that_the_configuration_names() -> None:
    assert declared_cuts({}, 8) == frozenset()
    assert declared_cuts({"is_matryoshka": True}, 8) is None
    assert declared_cuts({"is_matryoshka": True, "matryoshka_dimensions": [4, 8, 16, "x", -1]}, 8) == {4, 8}
