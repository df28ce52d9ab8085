"""Writes a checkpoint of train.py as a Hugging Face model directory in bf16, and checks it against transformers.

python export.py RUN_DIR/last.safetensors MODEL_DIR --heads heads.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mini_opsin.exporting import export, parity_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", type=Path, help="also keep the auxiliary heads here, to train on later")
    args = parser.parse_args()
    parameters, size = export(args.checkpoint, args.out, args.heads)
    print(f"{parameters} parameters, {size} bytes, logits within {parity_of(args.out):.1e} of transformers'")


if __name__ == "__main__":
    main()
