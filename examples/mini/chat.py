"""Asks an exported model about pictures, through transformers.

python chat.py MODEL_DIR picture.png "What is in the picture?"
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from mini_opsin.chat import Chat
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path, nargs="*")
    parser.add_argument("question")
    args = parser.parse_args()
    print(Chat(args.model).ask(args.question, *(Image.open(p) for p in args.pictures)))


if __name__ == "__main__":
    main()
