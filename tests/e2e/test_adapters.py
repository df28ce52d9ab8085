"""Adapters over the API of a real server: the life of a version, aliases, vLLM's routes, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import small_adapters
from support.adapter_answers import BASE, PROMPTS, Adapters, ask, kill_engine, packed, refused, upload
from support.served import Served, wait_for


def test_the_life_of_a_version(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    first = upload(server.url, "acme/stars", adapters.archives[0])
    assert (first["version"], first["current"], first["id"]) == (1, True, "acme/stars@v1")
    second = upload(server.url, "acme/stars", adapters.archives[1])
    assert second["version"] == 2
    assert upload(server.url, "acme/stars", adapters.archives[1])["version"] == 2, "it is that already"
    assert upload(server.url, "acme/stars", adapters.archives[2], promote="false")["current"] is False
    answers = {name: ask(server.url, name, 2) for name in ("acme/stars", "acme/stars@v1", "acme/stars@v3")}
    for answer in answers.values():
        adapters.check(answer, 2)
    assert [answer.label for answer in answers.values()] == ["acme/stars@v2", "acme/stars@v1", "acme/stars@v3"]
    by_digest = ask(server.url, f"acme/stars@{first['digest'].removeprefix('sha256:')[:12]}", 2)
    assert by_digest.label == "acme/stars@v1"
    assert http.post("/v1/adapters/acme/stars/promote", json={"version": 3}).json()["current_version"] == 3
    assert ask(server.url, "acme/stars", 0).label == "acme/stars@v3"
    assert http.post("/v1/adapters/acme/stars/rollback").json()["current_version"] == 2
    assert http.post("/v1/adapters/acme/stars/rollback").json()["current_version"] == 1
    refused(http.post("/v1/adapters/acme/stars/rollback"), 400, "no version of the adapter acme/stars was current")
    refused(http.post("/v1/adapters/acme/stars/promote", json={"version": 9}), 404, "has no version 9")
    refused(http.delete("/v1/adapters/acme/stars?version=1"), 400, "is the current one: promote another first")
    assert http.delete("/v1/adapters/acme/stars?version=2").json()["deleted"] is True
    about = http.get("/v1/adapters/acme/stars").json()
    assert [version["version"] for version in about["versions"]] == [1, 3]
    assert about["current_version"] == 1
    assert http.delete("/v1/models/acme/stars").json() == {"id": "acme/stars", "object": "model", "deleted": True}
    refused(http.get("/v1/adapters/acme/stars"), 404, "There is no adapter 'acme/stars'")
    with pytest.raises(httpx.HTTPStatusError):
        ask(server.url, "acme/stars", 0)
    assert upload(server.url, "acme/stars", adapters.archives[0])["version"] == 4, "no number is used twice"


def test_an_adapters_name_embeds_with_it(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    upload(server.url, "embeds", adapters.archives[0])

    def embedded(name: str) -> tuple[list[float], str | None]:
        answer = http.post("/v1/embeddings", json={"model": name, "input": "a red circle"})
        return answer.json()["data"][0]["embedding"], answer.headers.get("x-opsin-adapter-version")

    (base, none), (mine, label), (again, _) = (embedded(name) for name in (BASE, "embeds", "embeds@v1"))
    assert (none, label) == (None, "embeds@v1")
    assert mine == pytest.approx(again, abs=1e-6)
    assert mine != pytest.approx(base, abs=1e-2)
    assert 'opsin_adapter_requests_total{adapter="embeds"} 2.0' in http.get("/metrics").text


def test_aliases_are_what_clients_already_send(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    upload(server.url, "stars", adapters.archives[0])
    old = "ft:gpt-4o-2024-08-06:acme::abc123"
    for alias, target in ((old, "stars"), ("gpt-4o", BASE), ("fixed", "stars@v1")):
        assert http.post("/v1/aliases", json={"alias": alias, "target": target}).status_code == 201
    upload(server.url, "stars", adapters.archives[1])
    labels = {name: ask(server.url, name, 1).label for name in (old, "gpt-4o", "fixed")}
    assert labels == {old: "stars@v2", "gpt-4o": "", "fixed": "stars@v1"}
    models = {m.id: (m.parent, m.root) for m in server.client().models.list().data}  # type: ignore[attr-defined]
    assert models[old][0] == models["fixed"][0] == "stars"
    assert models["gpt-4o"] == (BASE, "gpt-4o")
    assert models["stars"][0] == BASE
    assert server.client().models.retrieve(old).id == old
    refused(http.delete("/v1/adapters/stars"), 400, "the alias")
    refused(http.post("/v1/aliases", json={"alias": BASE, "target": "stars"}), 400, "what the model itself is called")
    refused(http.post("/v1/aliases", json={"alias": "stars", "target": BASE}), 400, "is the name of an adapter")
    refused(http.post("/v1/aliases", json={"alias": "stars@v1", "target": BASE}), 400, "or of a version of one")
    refused(http.post("/v1/aliases", json={"alias": "x", "target": "nothing"}), 404, "'nothing' is not served")
    of_alias = http.post("/v1/aliases", json={"alias": "also fixed", "target": "fixed"}).json()
    assert of_alias["target"] == "stars@v1", "it stays as the other does"
    http.post("/v1/aliases", json={"alias": "later@v1", "target": BASE})
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        upload(server.url, "later", adapters.archives[0])
    http.post("/v1/aliases", json={"alias": old, "target": BASE})
    assert ask(server.url, old, 1).label == ""
    assert http.delete(f"/v1/aliases/{old}").json()["deleted"] is True
    refused(http.get(f"/v1/aliases/{old}"), 404, "There is no alias")


def test_vllms_routes_with_its_words(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    body = {"lora_name": "sql", "lora_path": "v1"}
    loaded = http.post("/v1/load_lora_adapter", json=body)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    refused(http.post("/v1/load_lora_adapter", json=body), 400, "The lora adapter 'sql' has already been loaded.")
    absolute = {"lora_name": "sql", "lora_path": str(adapters.directories[2]), "load_inplace": True}
    assert http.post("/v1/load_lora_adapter", json=absolute).status_code == 200
    assert ask(server.url, "sql", 3).label == "sql@v2"
    for path in ("/etc", "..", "../..", "v1/../../..", "/", str(adapters.directories[0].parent)):
        refused(http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path}), 400, "--adapter-dir")
    refused(http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "none"}), 404, "no such directory")
    gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    refused(http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"}), 404, "cannot be found")


def test_links_that_lead_out_of_the_directory_are_not_followed(
    server: Served, http: httpx.Client, adapters: Adapters, tmp_path: Path
) -> None:
    outside, link = small_adapters.write(tmp_path / "outside", 0), adapters.directories[0].parent / "link"
    link.symlink_to(outside)
    try:
        refused(
            http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "link"}), 400, "does not lie in"
        )
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            ask(server.url, "link", 0)
        link.unlink()
        link.mkdir()
        for file in outside.iterdir():
            (link / file.name).symlink_to(file)
        by_path = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "link"})
        refused(by_path, 400, "is a link that leads out of the server's --adapter-dir")
    finally:
        shutil.rmtree(link, ignore_errors=True)
        link.unlink(missing_ok=True)


def test_an_unknown_model_is_looked_for_in_the_directory(
    server: Served, http: httpx.Client, adapters: Adapters
) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: ask(server.url, "v3", prompt), range(4)))
    for prompt, answer in enumerate(answers):
        assert answer.label == "v3@v1", "it is loaded once"
        adapters.check(answer, prompt)
    unknown = ask_refused(server, "v3@v9")
    assert "The adapter 'v3' cannot answer: it has no version 9" in unknown
    for name in ("v99", "../v3", "v3/..", "v4@v1", ".", ""):
        with pytest.raises(httpx.HTTPStatusError):
            ask(server.url, name, 0)


def ask_refused(server: Served, model: str) -> str:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        ask(server.url, model, 0)
    return caught.value.response.json()["error"]["message"]


def test_a_download_is_what_was_loaded(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    upload(server.url, "fetched", adapters.archives[2])
    got = http.get("/v1/adapters/fetched/download")
    assert got.headers["content-disposition"] == 'attachment; filename="fetched-v1.tar"'
    with tarfile.open(fileobj=io.BytesIO(got.content)) as archive:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            member = archive.extractfile(name)
            assert member is not None
            assert member.read() == (adapters.directories[2] / name).read_bytes()
    assert upload(server.url, "again", got.content)["digest"] == http.get("/v1/adapters/fetched").json()["digest"]


def test_a_bad_one_leaves_the_version_that_serves(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    upload(server.url, "kept", adapters.archives[0])
    pickled = adapters.directories[0].parent / "pickled"
    shutil.copytree(adapters.directories[0], pickled)
    (pickled / "non_lora_trainables.bin").write_bytes(b"a projector")
    by_path = http.post("/v1/adapters", json={"name": "kept", "path": "pickled"})
    refused(by_path, 400, "non_lora_trainables.bin is a pickle, which can run code")
    archive = packed(pickled)
    shutil.rmtree(pickled)
    bad = {
        archive: "non_lora_trainables.bin is a pickle",
        b"no archive" * 100: "the archive cannot be read",
        packed_with(adapters, {"use_dora": True, "r": 3}): "use_dora is True",
        packed_with(adapters, {"r": 32}): "but adapter_config.json says 32",
    }
    for archive, why in bad.items():
        with pytest.raises(httpx.HTTPStatusError) as caught:
            upload(server.url, "kept", archive)
        assert caught.value.response.status_code == 400
        assert why in caught.value.response.json()["error"]["message"]
    assert ask(server.url, "kept", 0).label == "kept@v1"
    assert len(http.get("/v1/adapters/kept").json()["versions"]) == 1


def packed_with(adapters: Adapters, fields: dict[str, Any]) -> bytes:
    source = adapters.directories[0]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(source / "adapter_model.safetensors", "adapter_model.safetensors")
        config = json.dumps(json.loads((source / "adapter_config.json").read_text()) | fields).encode()
        info = tarfile.TarInfo("adapter_config.json")
        info.size = len(config)
        archive.addfile(info, io.BytesIO(config))
    return buffer.getvalue()


def test_pictures_are_as_large_as_in_training_unless_a_request_says_otherwise(
    server: Served, http: httpx.Client, adapters: Adapters, tmp_path: Path
) -> None:
    source = shutil.copytree(adapters.directories[0], tmp_path / "small pictures")
    tokens = {}
    for pixels in (None, 56 * 56, 28 * 28):
        if pixels is not None:
            (source / "opsin_adapter.json").write_text(json.dumps({"max_pixels": pixels}))
        said = upload(server.url, "budget", packed(source))
        assert said["version"] == len(tokens) + 1, "another budget is another version"
        tokens[pixels] = image_tokens(http)
    assert tokens[None] > tokens[56 * 56] > tokens[28 * 28]
    assert image_tokens(http, mm_processor_kwargs={"max_pixels": 56 * 56}) == tokens[56 * 56]
    (source / "opsin_adapter.json").write_text('{"max_pixels": 0}')
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        upload(server.url, "budget", packed(source))


def image_tokens(http: httpx.Client, **fields: Any) -> int:
    """Of one picture, for the adapter `budget`."""
    message = {"role": "user", "content": PROMPTS[2]}
    body = {"model": "budget", "messages": [message], "max_tokens": 1, **fields}
    answer = http.post("/v1/chat/completions", json=body)
    return answer.raise_for_status().json()["usage"]["prompt_tokens_details"]["image_tokens"]


def test_forms_that_are_none(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    file = {"file": ("a.tar", adapters.archives[0])}
    refused(http.post("/v1/adapters", files=file), 400, "Missing required parameter: 'name'")
    refused(http.post("/v1/adapters", data={"name": "x"}, files={"other": b"1"}), 400, "Missing required")
    refused(http.post("/v1/adapters", data={"name": "x", "y": "1"}, files=file), 400, "Unrecognized request argument")
    refused(http.post("/v1/adapters", data={"name": "x", "force": "so"}, files=file), 400, "true or false")
    refused(http.post("/v1/adapters", data={"name": "a@v1"}, files=file), 400, "must not hold '@'")
    for name in ("a//b", "/a", "a/", ".", "a/..", "a/download", "promote", " a", "a "):
        refused(http.post("/v1/adapters", data={"name": name}, files=file), 400, "cannot be an adapter's name")
    refused(http.get("/v1/adapters/x/download?version=one"), 400, "it must be a number")
    refused(http.delete(f"/v1/adapters/x?version={10**20}"), 400, "it must be a number")
    refused(http.delete("/v1/adapters/x?versions=1"), 400, "Unrecognized request argument supplied: versions")
    refused(http.post("/v1/aliases", json={"alias": "/x", "target": BASE}), 400, "cannot be an alias")
    refused(http.post("/v1/adapters", data={"name": BASE}, files=file), 400, "what the model itself is called")
    refused(http.post("/v1/adapters", data={"name": "x" * 300}, files=file), 400, "300 characters")
    raw = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x", b"--x\r\n\r\nhello", b"nothing at all", b"--x\r\nA: b\r\n\r\n1\r\n--x--\r\n"):
        assert http.post("/v1/adapters", content=body, headers=raw).status_code == 400
    refused(http.post("/v1/adapters", json={"name": "x"}), 400, "Missing required parameter: 'path'")
    refused(http.post("/v1/adapters", json={"name": "x", "path": "v0", "z": 1}), 400, "z")


def test_the_field_at_fault_is_named(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    file = {"file": ("a.tar", adapters.archives[0])}
    upload(server.url, "named", adapters.archives[0])

    def alias(name: str) -> httpx.Response:
        return http.post("/v1/aliases", json={"alias": name, "target": "named"})

    wrong = {"alias": [alias(name) for name in (BASE, "named", "named@v1", "a\nb")]}
    wrong["alias"].append(http.delete("/v1/aliases/zz"))
    wrong["name"] = [http.post("/v1/adapters", data={"name": name}, files=file) for name in ("", BASE, "a\tb")]
    wrong["name"] += [http.delete("/v1/adapters/zz"), http.post("/v1/adapters/zz/promote", json={"version": 1})]
    wrong["version"] = [
        http.post("/v1/adapters/named/promote", json={"version": 99}),
        http.delete("/v1/adapters/named?version=9"),
        http.get("/v1/adapters/named/download?version=9"),
    ]
    wrong["lora_name"] = [http.post("/v1/load_lora_adapter", json={"lora_name": BASE, "lora_path": "v1"})]
    for param, answers in wrong.items():
        for answer in answers:
            assert answer.json()["error"]["param"] == param, answer.text
            assert answer.json()["error"]["code"], answer.text


def test_pinned_adapters_stay_and_one_slot_is_left(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    for number in range(4):
        upload(server.url, f"a{number}", adapters.archives[number])
    for name in ("a0", "a1"):
        assert http.post(f"/v1/adapters/{name}/pin", json={}).json()["pinned"] is True
    refused(http.post("/v1/adapters/a2/pin", json={}), 400, "at most 2 adapters can be pinned")
    wait_for(lambda: http.get("/v1/adapters/a0").json()["tier"] == "slot", 60, "it has no slot")
    for number in (2, 3, 2, 3):
        adapters.check(ask(server.url, f"a{number}", 0), 0)
    assert {http.get(f"/v1/adapters/a{n}").json()["tier"] for n in (0, 1)} == {"slot"}
    assert http.post("/v1/adapters/a0/pin", json={"pinned": False}).json()["pinned"] is False
    kill_engine(server)
    wait_for(lambda: http.get("/v1/adapters/a1").json()["tier"] == "slot", 60, "it is not there again")
    adapters.check(ask(server.url, "a0", 2), 2)


def test_what_is_counted(server: Served, http: httpx.Client, adapters: Adapters) -> None:
    upload(server.url, "counted", adapters.archives[4])
    before = server.metrics().get('opsin_adapter_requests_total{adapter="counted"}', 0)
    for _ in range(3):
        ask(server.url, "counted", 0)
    found = server.metrics()
    assert found['opsin_adapter_requests_total{adapter="counted"}'] - before == 3
    assert found['opsin_adapter_generation_tokens_total{adapter="counted"}'] >= 3
    assert found['opsin_adapter_queue_seconds_count{adapter="counted"}'] >= 3
    assert found['opsin_adapter_lookups_total{adapter="counted",tier="slot"}'] >= 2
    assert found["opsin_adapter_slots"] == 3
    info = next(name for name in found if name.startswith("vllm:lora_requests_info"))
    assert 'max_lora="3"' in info
    assert 'running_lora_adapters=""' in info
