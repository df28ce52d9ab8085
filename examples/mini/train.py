"""Trains opsin-mini within a time budget.

    python train.py OUT --ranks 2                       # the recipe: 85 minutes, two one-thread processes
    python train.py OUT --minutes 85 --device cuda      # one process on a GPU
    python train.py OUT --resume OUT/last.safetensors   # goes on where the checkpoint stopped
    python train.py OUT --init MODEL_DIR --heads heads.safetensors --minutes 60 --start 0.4   # trains a model on

The schedule follows the elapsed share of the budget, not steps, so that a slower machine ends with a shorter but
complete curriculum and learning-rate decay.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads of two ranks starve each other

import torch
from mini_opsin import checkpoint, tokenizer
from mini_opsin.exam import exam_batches
from mini_opsin.fonts import Fonts, add_font_options, fonts_from
from mini_opsin.loading import load_tokenizer
from mini_opsin.model import Sizes, sizes_of
from mini_opsin.precision import bf16_pays
from mini_opsin.ranks import add_rank_options, agree, together
from mini_opsin.schedule import Budget, run
from mini_opsin.trainer import Settings, Trainer

MARKS = [5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--minutes", type=float, default=85)
    p.add_argument("--start", type=float, help="share of the schedule to start at; a resumed run knows its own")
    p.add_argument(
        "--marks", type=float, nargs="*", default=MARKS, help="minutes to examine and save at, beside the end"
    )
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=int, default=1, help="torch threads a rank; ranks gain more than threads")
    p.add_argument(
        "--batch-scale", type=float, help="a rank's share of the pictures a step (default 1; 0.66 with ranks)"
    )
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="products in bf16 (default: if faster here)")
    origin = p.add_mutually_exclusive_group()
    origin.add_argument("--resume", type=Path, help="a checkpoint of this script, optimizers included")
    origin.add_argument("--init", type=Path, help="an exported model directory to train on from")
    p.add_argument("--heads", type=Path, help="with --init: the heads that export.py kept")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--exam-seed", type=int, default=101, help="the set watched on the way; test with another seed")
    p.add_argument("--exam-batches", type=int, default=16)
    p.add_argument("--muon-lr", type=float, default=Settings.muon_lr)
    p.add_argument("--adam-lr", type=float, default=Settings.adam_lr)
    p.add_argument("--vocab", type=int, default=1536)
    for size in fields(Sizes):
        p.add_argument(f"--{size.name.replace('_', '-')}", type=int, default=size.default)
    add_rank_options(p)
    add_font_options(p)
    args = p.parse_args()
    if args.device == "cuda" and (args.ranks > 1 or not torch.cuda.is_available()):
        p.error("--device cuda needs a CUDA device and one rank")
    if args.heads and not args.init:
        p.error("--heads goes with --init")
    return args


def prepare_tokenizer(args: argparse.Namespace, fonts: Fonts) -> None:
    """OUT/tokenizer: kept where it is, else taken from what the run starts from, else trained."""
    there = args.out / "tokenizer"
    if there.exists():
        return
    origin = args.resume.parent / "tokenizer" if args.resume else args.init
    kept = load_tokenizer(origin) if origin else tokenizer.train(args.vocab, 4000, 7, fonts)
    kept.save_pretrained(there)


def make_trainer(args: argparse.Namespace, fonts: Fonts) -> Trainer:
    scale = args.batch_scale or (1.0 if args.ranks == 1 else 0.66)
    bf16 = bool(agree(bf16_pays(args.device))) if args.bf16 is None else args.bf16
    settings = Settings(args.device, bf16, scale, args.seed, args.muon_lr, args.adam_lr)
    kept = load_tokenizer(args.out / "tokenizer")
    if args.resume:
        state = checkpoint.read(args.resume)
        trainer = Trainer(kept, state.sizes, settings, fonts)
        checkpoint.resume(trainer, state)
    elif args.init:
        trainer = Trainer(kept, sizes_of(checkpoint.exported_weights(args.init)), settings, fonts)
        checkpoint.init_from_export(trainer, args.init, args.heads)
    else:
        sizes = Sizes(**{size.name: getattr(args, size.name) for size in fields(Sizes)})
        trainer = Trainer(kept, sizes, settings, fonts)
    return trainer


def main() -> None:
    args = parse()
    fonts = fonts_from(args)
    torch.set_num_threads(args.threads)
    if args.rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        prepare_tokenizer(args, fonts)
    with together(args.rank, args.ranks, args.port):
        trainer = make_trainer(args, fonts)
        held_out = exam_batches(trainer.encoder, args.exam_seed, args.exam_batches, fonts)
        start = trainer.fraction if args.start is None else args.start
        run(trainer, held_out, Budget(args.minutes, start, tuple(args.marks)), args.out)


if __name__ == "__main__":
    main()
