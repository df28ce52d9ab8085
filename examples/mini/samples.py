"""Draws the sample gallery and asks the exported model about it.

python samples.py MODEL_DIR SAMPLES_DIR
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from mini_opsin.chat import Chat
from mini_opsin.fonts import add_font_options, fonts_from
from mini_opsin.gallery import QUESTIONS, gallery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    add_font_options(parser)
    args = parser.parse_args()
    pictures = gallery(fonts_from(args), args.fonts)
    chat, rows = Chat(args.model), []
    args.out.mkdir(parents=True, exist_ok=True)
    for name, image in pictures.items():
        image.quantize(128).save(args.out / f"{name}.png", optimize=True)
    for names, question, right in QUESTIONS:
        if not set(names) <= set(pictures):
            print("---", names, question, "-> not drawn: the emoji font is missing")
            continue
        said = chat.ask(question, *(pictures[n] for n in names))
        files = [f"{n}.png" for n in names]
        rows.append({"files": files, "question": question, "right": right, "model": said, "ok": said == right})
        print("ok " if said == right else "BAD", names, question, "->", said)
    (args.out / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(f"{sum(bool(r['ok']) for r in rows)} of {len(rows)} right")


if __name__ == "__main__":
    main()
