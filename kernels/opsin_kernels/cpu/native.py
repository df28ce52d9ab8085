"""The C of this folder, loaded for this processor."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from opsin_kernels.cpu.build import NoCompilerError, build, library_name
from opsin_kernels.dispatch import forced

LANES = 16  # what widths are multiples of, on whatever processor
HERE = Path(__file__).parent

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS = {
    "linear": (_POINTER, _POINTER, _COUNT, _POINTER, _COUNT),
    "rms_norm": (*(_POINTER,) * 3, _COUNT, _COUNT, _POINTER),
    "add_rms_norm": (*(_POINTER,) * 5, _COUNT, _COUNT, _POINTER),
    "silu_gated": (_POINTER, _POINTER, _COUNT, _COUNT),
    "forbid": (_POINTER, _POINTER, *(_COUNT,) * 4),
    "draw_rows": (*(_POINTER,) * 5, *(_COUNT,) * 3),
    "scratch_bytes": (_COUNT,),
    "rotate_and_store": (*(_POINTER,) * 5, *(_COUNT,) * 5),
    "attend": (*(_POINTER,) * 5, *(_COUNT,) * 9),
    "decode_layer": (_POINTER,) * 4,
}
_RESULTS = {
    **dict.fromkeys(("linear", "decode_layer"), ctypes.c_int),  # whether there was memory
    "scratch_bytes": _COUNT,
}


@cache
def native() -> ctypes.CDLL | str:
    """Or why there is none, in a sentence."""
    if (wanted := forced()) in ("torch", "interpret"):
        return f"OPSIN_KERNELS={wanted} asks for {'the definitions' if wanted == 'torch' else 'kernels of a GPU'}"
    level = torch.backends.cpu.get_cpu_capability()
    level = level if level in ("AVX512", "AVX2") else "DEFAULT"
    try:
        ready = HERE / library_name(level)
        path = ready if ready.is_file() else build(level, _folder())
        try:
            return _opened(path)
        except (OSError, AttributeError):  # it is damaged
            return _opened(build(level, _folder(), anew=path.parent == _folder()))
    except (NoCompilerError, OSError, AttributeError, RuntimeError) as error:
        return str(error)


def _folder() -> Path:
    """Where a library is made. Raises RuntimeError where nobody has a home."""
    if os.access(HERE, os.W_OK):
        return HERE
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opsin"


def _opened(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    for name, arguments in _FUNCTIONS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, _RESULTS.get(name)
    return found


def loaded() -> ctypes.CDLL:
    """Where `can_run` says so."""
    found = native()
    assert not isinstance(found, str)
    return found


def can_run(*tensors: Tensor) -> bool:
    """Whether these are in memory that C can read. (A tensor of a fake mode, which has none, is of another class.)"""
    return all(x.is_cpu and type(x) in _PLAIN for x in tensors) and not isinstance(native(), str)


def differentiates(*tensors: Tensor) -> bool:
    """Whether somebody asks for a gradient, which C does not give."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


_PLAIN = (Tensor, torch.nn.Parameter)
