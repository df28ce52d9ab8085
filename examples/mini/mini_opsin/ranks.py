"""Several processes that train one model: two one-thread processes on two cores beat one process with two threads."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


def add_rank_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together (on a CPU: one a core)")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)


@contextmanager
def together(rank: int, ranks: int, port: int) -> Iterator[None]:
    """Rank 0 starts the other ranks as the same command line and joins them; all end together."""
    if ranks == 1:
        yield
        return
    children: list[subprocess.Popen[bytes]] = []
    if rank == 0:
        port = free_port()
        command = [sys.executable, *sys.argv, "--port", str(port), "--rank"]
        children = [subprocess.Popen([*command, str(other)]) for other in range(1, ranks)]
    try:
        where = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", where, timedelta(minutes=10), world_size=ranks, rank=rank)
        yield
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        for child in children:
            child.terminate()
        raise
    finally:
        codes = [child.wait() for child in children]
    if any(codes):
        raise RuntimeError(f"the other ranks ended with exit codes {codes}")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def world() -> tuple[int, int]:
    """(rank, ranks)"""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def agree(value: float) -> float:
    """Rank 0's value, on every rank."""
    shared = torch.tensor([value], dtype=torch.float64)
    if world()[1] > 1:
        dist.broadcast(shared, 0)
    return float(shared)


def total(counts: Tensor) -> Tensor:
    """The sum over all ranks."""
    if world()[1] > 1:
        dist.all_reduce(counts)
    return counts


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    _, ranks = world()
    if ranks == 1:
        return
    everything = list(parameters)
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in everything])
    dist.all_reduce(flat)
    flat /= ranks
    for p, gradient in zip(everything, torch.split(flat, [p.numel() for p in everything]), strict=True):
        p.grad = gradient.view_as(p)
