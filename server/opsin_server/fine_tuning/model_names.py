"""What a fine-tuned model is called: ft:BASE:ORGANIZATION:SUFFIX:ID, as at OpenAI."""

from __future__ import annotations

import re

ORGANIZATION = "opsin"
ID = 8  # characters of the job's
NOT_PLAIN = re.compile(r"[^A-Za-z0-9_-]+")


def model_name(base: str, suffix: str | None, job_id: str) -> str:
    """base: the served model's name, without what stands before its last slash."""
    plain = NOT_PLAIN.sub("-", suffix or "").strip("-")
    return f"ft:{base.rpartition('/')[2].replace('@', '-')}:{ORGANIZATION}:{plain}:{job_id.rpartition('-')[2][:ID]}"


def checkpoint_name(name: str, step: int) -> str:
    return f"{name}:ckpt-step-{step}"
