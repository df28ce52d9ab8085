"""The demonstration model that ships with Opsin, and its gallery."""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "models" / "opsin-mini"
SAMPLES = Path(__file__).parent / "models" / "samples"
ABOUT = "opsin-mini is a demonstration model for drawings, emoji, digits and letters, not for photographs."
