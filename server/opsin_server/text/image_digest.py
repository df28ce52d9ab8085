"""What an image's visual tokens depend on, as one SHA-256: the key under which they are cached."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from opsin_plugins.spec import API_VERSION, U8, ImageBudget, ModelSpec


def image_digest(image: U8, spec: ModelSpec, budget: ImageBudget) -> bytes:
    """image: U8 [H, W, 3], the decoded pixels. The header's length stands first, so no header reads as pixels."""
    about = {
        "api": API_VERSION,
        "family": spec.family,
        "encoder": spec.encoder,
        "image": asdict(spec.image) if spec.image is not None else None,
        "budget": asdict(budget),
        "mode": "RGB",
        "shape": image.shape,
    }
    header = json.dumps(about, sort_keys=True).encode()
    digest = hashlib.sha256(len(header).to_bytes(8, "big") + header)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()
