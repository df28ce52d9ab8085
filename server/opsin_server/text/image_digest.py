"""What the visual tokens of an image or a video depend on, as one SHA-256: the key under which they are cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from opsin_plugins.spec import API_VERSION, U8, Clip, ImageBudget, ModelSpec


def image_digest(image: U8, spec: ModelSpec, budget: ImageBudget) -> bytes:
    """image: U8 [H, W, 3], the decoded pixels."""
    rules = asdict(spec.image) if spec.image is not None else None
    return _digest({"image": rules, "budget": asdict(budget)}, image, spec)


def video_digest(clip: Clip, spec: ModelSpec) -> bytes:
    """Also of where its tokens stand: the seconds of its frames."""
    rules = asdict(spec.video) if spec.video is not None else None
    return _digest({"video": rules, "plan": asdict(clip.plan)}, clip.frames, spec)


def _digest(rules: Mapping[str, object], pixels: U8, spec: ModelSpec) -> bytes:
    """The header's length stands first, so no header reads as pixels."""
    about = {
        "api": API_VERSION,
        "family": spec.family,
        "encoder": spec.encoder,
        **rules,
        "mode": "RGB",
        "shape": pixels.shape,
    }
    header = json.dumps(about, sort_keys=True).encode()
    digest = hashlib.sha256(len(header).to_bytes(8, "big") + header)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
