"""Bodies of the routes that load, name and move adapters; and what these answer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from opsin_server.adapters.catalogue import AdapterCatalogue
from opsin_server.chat.fields import WHOLE, Ignored, Strict
from opsin_server.ipc.messages import AdapterReport
from opsin_server.storage.records import Adapter, AdapterVersion, Alias

Name = Annotated[str, Field(min_length=1, max_length=256)]
Path = Annotated[str, Field(min_length=1, max_length=4096)]
Number = Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE]


class LoadLoraAdapter(Strict):
    """vLLM's."""

    lora_name: Name
    lora_path: Path
    load_inplace: bool = False
    is_3d_lora_weight: Annotated[bool, Field(description="False alone is served.")] = False


class UnloadLoraAdapter(Strict):
    """vLLM's."""

    lora_name: Name
    lora_int_id: Ignored = None


class CreateAdapter(Strict):
    """Of a directory below --adapter-dir. (An upload is a multipart form with `file` and the same other fields.)"""

    name: Name
    path: Annotated[Path, Field(description="below --adapter-dir")]
    promote: Annotated[bool, Field(description="false: it is loaded, and not the current version")] = True
    force: Annotated[bool, Field(description="true: also for another base model than it was trained on")] = False


class PromoteVersion(Strict):
    version: Number


class PinAdapter(Strict):
    pinned: bool = True


class CreateAlias(Strict):
    alias: Name
    target: Annotated[str, Field(min_length=1, max_length=400, description="a model, an adapter, or NAME@v3")]


def described_version(version: AdapterVersion, *, current: bool) -> dict[str, Any]:
    facts = version.facts
    return {
        "version": version.version,
        "id": f"{version.adapter}@v{version.version}",
        "current": current,
        "digest": f"sha256:{facts.digest}",
        "rank": facts.rank,
        "targets": list(facts.targets),
        "bytes": facts.size,
        "created_at": int(version.created),
        "origin": facts.origin,
        "base_digest": facts.base_digest,
        "pixel_budget": facts.pixel_budget,
        "files": {name: {"sha256": file.sha256, "bytes": file.size} for name, file in facts.source.items()},
        "warnings": list(facts.warnings),
    }


def described_adapter(name: str, catalogue: AdapterCatalogue, report: AdapterReport) -> dict[str, Any]:
    """tier: where the current version is now: slot, host or disk."""
    now = catalogue.snapshot
    adapter, versions = now.adapters[name], now.versions.get(name, ())
    current = next((v for v in versions if v.version == adapter.current_version), None)
    return {
        "object": "adapter",
        "id": name,
        "current_version": adapter.current_version,
        "digest": None if current is None else f"sha256:{current.facts.digest}",
        "tier": None if current is None else _tier(current, report),
        "pinned": adapter.pinned,
        "created_at": int(adapter.created),
        "updated_at": int(adapter.updated),
        "last_used_at": None if adapter.last_used is None else int(adapter.last_used),
        "unservable": None if current is None else catalogue.why_unfit(current),
        "versions": [described_version(v, current=v is current) for v in versions],
        "aliases": sorted(alias.alias for alias in now.aliases.values() if alias.adapter == adapter.name),
    }


def _tier(version: AdapterVersion, report: AdapterReport) -> str:
    digest = bytes.fromhex(version.facts.digest)
    return "slot" if digest in report.slots else "host" if digest in report.host else "disk"


def described_alias(alias: Alias, base_name: str) -> dict[str, Any]:
    version = "" if alias.version is None else f"@v{alias.version}"
    target = base_name if alias.adapter is None else f"{alias.adapter}{version}"
    return {
        "object": "alias",
        "id": alias.alias,
        "target": target,
        "pinned_version": alias.version,
        "created_at": int(alias.created),
        "updated_at": int(alias.updated),
    }


def described_change(adapter: Adapter) -> dict[str, Any]:
    return {
        "object": "adapter",
        "id": adapter.name,
        "current_version": adapter.current_version,
        "pinned": adapter.pinned,
    }
