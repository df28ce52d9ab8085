"""What a schema leaves without an end has one: random answers of it all end, and are read by who knows the form."""

from __future__ import annotations

import datetime
import ipaddress
import json
import random
import uuid
from email.headerregistry import Address
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from pydantic import AnyUrl, TypeAdapter

from opsin_server.guided.bounds import bounded
from opsin_server.guided.check_worker import END, Bytes
from opsin_server.guided.grammar import json_grammar
from opsin_server.guided.limits import parser_limits

TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=END + 1, eos_token=[END], slices=[])
READERS: dict[str, tuple[Any, int]] = {  # who reads it, and the most characters
    "date": (datetime.date, 10),
    "date-time": (datetime.datetime, 32),
    "time": (datetime.time, 21),
    "duration": (datetime.timedelta, 43),
    "email": (str, 254),
    "hostname": (str, 253),
    "ipv4": (ipaddress.IPv4Address, 15),
    "ipv6": (ipaddress.IPv6Address, 39),
    "uri": (AnyUrl, 1024),
    "uuid": (uuid.UUID, 36),
}
BESIDE: list[dict[str, Any]] = [{}, {"minLength": 1, "maxLength": 2083}, {"pattern": "[02]", "minLength": 8}]


def matcher(schema: dict[str, Any]) -> LLMatcher:
    made = LLMatcher(TOKENIZER, json_grammar(schema, "p").text, log_level=0, limits=parser_limits())
    assert not made.is_error(), made.get_error()
    return made


def accepts(schema: dict[str, Any], value: str) -> bool:
    ids, made = list(value.encode()), matcher(schema)
    return made.try_consume_tokens(ids) == len(ids) and made.is_accepting()


def drawn(schema: dict[str, Any], seed: int, most: int) -> str:
    """An answer whose every byte is drawn among those that may follow."""
    made, rng, answer = matcher(schema), random.Random(seed), bytearray()
    while not made.is_stopped():
        mask = int.from_bytes(made.compute_bitmask(), "little")
        byte = rng.choice([i for i in range(END + 1) if mask >> i & 1])
        if byte == END:
            break
        answer.append(byte)
        made.consume_token(byte)
        assert len(answer) <= most, f"no end: {answer.decode()}"
    return answer.decode()


@pytest.mark.parametrize("name", READERS)
def test_strings_of_a_format_end_and_are_read(name: str) -> None:
    reader, most = READERS[name]
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for beside in BESIDE:
        schema = {"type": "string", "format": name, **beside}
        for seed in range(24):
            answer = drawn(schema, seed, most + 2)
            TypeAdapter(reader).validate_json(answer)
            jsonschema.validate(json.loads(answer), schema, format_checker=checker)


def test_addresses_of_mails_have_a_short_name_and_a_domain() -> None:
    for seed in range(24):
        address = Address(addr_spec=json.loads(drawn({"type": "string", "format": "email"}, seed, 256)))
        assert len(address.username) <= 64
        assert all(1 <= len(label) <= 63 for label in address.domain.split("."))


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("date", ["0001-01-01", "2024-02-29", "2000-02-29", "9999-12-31"], ["0000-01-01", "2023-02-29", "1900-02-29"]),
        (
            "date-time",
            ["2024-05-01T23:59:59Z", "2024-05-01T10:00:00.123456+02:00"],
            ["2024-05-01t10:00:00Z", "2024-05-01T10:00:60Z", "2024-05-01T10:00:00", "2024-05-01T10:00:00.1234567Z"],
        ),
        ("duration", ["P1Y2M3DT4H5M6S", "PT86400S", "P2W", "P0D"], ["P", "PT", "P1D1Y", "P1YT", "PT1234567S"]),
        ("email", ["o'brien+x@mail.cs.uni.ac.uk", "a@b.de"], ["a@b", "a..b@c.de", "a@-b.de", "a" * 65 + "@b.de"]),
        ("hostname", ["localhost", "a.b.c.svc.cluster.local"], ["-a.de", "a..b", "a" * 64]),
        ("ipv6", ["::", "::1", "1:2:3:4:5:6:7::", "fe80::1:2"], ["1:2", "1::2::3", "1:2:3:4:5:6:7:8:9", ":::"]),
        (
            "uri",
            ["https://a.de:8000/b/c?d=e%20f#g", "http://[::1]/", "mailto:a@b.de", "file:///tmp/x", "ssh://git@a.de/b"],
            ["http:", "https://", "http://1.2.3.999/", "a b:c", "http://a.de:99999/", "/a"],
        ),
    ],
)
def test_what_is_of_a_format(name: str, yes: list[str], no: list[str]) -> None:
    schema = {"type": "string", "format": name}
    assert [text for text in yes if not accepts(schema, json.dumps(text))] == []
    assert [text for text in no if accepts(schema, json.dumps(text))] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number"},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "number", "maximum": -2.5},
        {"type": "number", "multipleOf": 0.25},
        {"type": ["integer", "null"]},
        {"type": "integer", "minimum": 7},
        {"$defs": {"n": {"type": "number", "minimum": 3}}, "anyOf": [{"$ref": "#/$defs/n"}, {"type": "integer"}]},
        {
            "items": [{"type": "number"}],
            "type": "array",
            "minItems": 1,
            "additionalItems": {"type": "number"},
            "maxItems": 2,
        },
    ],
)
def test_numbers_end_and_keep_to_their_schema(schema: dict[str, Any]) -> None:
    kind = jsonschema.Draft7Validator if "items" in schema else jsonschema.Draft202012Validator
    for seed in range(24):
        answer = json.loads(drawn(schema, seed, 200 if "items" in schema else 30))
        assert list(kind(schema).iter_errors(answer)) == []


def test_numbers_that_are_written_and_those_that_are_not() -> None:
    integers = {"type": "integer"}
    assert accepts(integers, "1234567890123456789")
    assert not accepts(integers, "1" * 20)
    assert accepts({"type": "number"}, "-1234567890.123456789")
    assert not accepts({"type": "number"}, "0.1234567891")
    assert not accepts({"type": "number"}, "1." + "0" * 10)


def test_what_has_an_end_stays_as_it_is() -> None:
    listed = {"enum": [1e300, "2024-05-01t10:00:60Z"], "format": "date-time"}
    far = {"type": "number", "minimum": 1e30, "multipleOf": 0.5}
    both = {"type": "integer", "exclusiveMinimum": 1, "maximum": 5}
    for schema in (listed, far, both):
        assert bounded(schema) == schema
    meeting = {"$defs": {"n": {"type": "number"}}, "$ref": "#/$defs/n", "multipleOf": 10}
    assert accepts(meeting, "20")
    assert not accepts(meeting, "25")
    broken = {"allOf": 5, "format": "date"}
    assert bounded(broken) == broken
