"""Held-out accuracy of an exported model for each task, with n and the share of the most frequent answer.

python evaluate.py MODEL_DIR --seed 990017 --batches 150
python evaluate.py MODEL_DIR --seed 990017 --quantization int4     as `opsin serve --quantization int4` computes it
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from mini_opsin.encoder import Encoder
from mini_opsin.exam import exam_batches, majority, overall, score
from mini_opsin.fonts import add_font_options, fonts_from
from mini_opsin.forward import EXACT
from mini_opsin.loading import load_model, load_tokenizer
from mini_opsin.quantizing import kept_in_8_bits, met_in_8_bits, quantize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--quantization", choices=["int8", "int4", "fp8"])
    parser.add_argument("--quantize-vision", action="store_true")
    parser.add_argument("--quantize-activations", action="store_true", help="of the decoder's linears, in int8 or fp8")
    parser.add_argument("--kv-dtype", choices=["auto", "int8", "fp8"], default="auto")
    add_font_options(parser)
    args = parser.parse_args()
    if args.quantize_activations and args.quantization not in ("int8", "fp8"):
        parser.error("--quantize-activations goes with --quantization int8 or fp8")
    fonts = fonts_from(args)
    encoder, model = Encoder(load_tokenizer(args.model)), load_model(args.model)
    if args.quantization is not None:
        quantize(model, args.quantization, vision=args.quantize_vision)
    exam = exam_batches(encoder, args.seed, args.batches, fonts)
    how = EXACT
    if args.kv_dtype != "auto":
        how = replace(how, keep=partial(kept_in_8_bits, kind=args.kv_dtype))
    if args.quantize_activations:
        how = replace(how, meet=partial(met_in_8_bits, kind=args.quantization))
    table, blind = score(model, exam, torch.float32, how), majority(exam)
    print(f"{'task':18s} {'right %':>8s} {'majority %':>10s} {'n':>6s}")
    for task, (right, n) in sorted(table.items()):
        print(f"{task:18s} {100 * right / n:8.1f} {blind[task]:10.1f} {n:6d}")
    print(f"mean over {len(table)} tasks {overall(table)}")


if __name__ == "__main__":
    main()
