"""Configuration: read once from the command line, resolved once, then frozen. Both processes read the same object."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from opsin_server.api_keys import check_keys
from opsin_server.errors import ConfigError

# As browsers send it: no path, no upper case, no default port. "null" is what a page in a file has.
ORIGIN = re.compile(r"\*|null|(?!http://[^:]+:80$|https://[^:]+:443$)[a-z][a-z0-9+.-]*://[^/\s?#@,*A-Z]+")
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")

DType = Literal["auto", "float32", "bfloat16", "float16"]


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the engine process is told. None means "auto", settled in `engine.memory.resolve`."""

    model: str
    device: str = "auto"  # auto | cpu | cuda
    dtype: DType = "auto"
    quantize: Literal["none", "int8"] = "none"
    threads: int = 1
    max_context: int | None = None
    max_sequences: int = 64
    max_batch_tokens: int | None = None
    kv_memory: int | None = None  # bytes
    block_size: int = 16
    encoder_memory: int | None = None  # bytes of visual tokens: cached, or what a memory keeps of them
    prefix_cache: bool = True
    graphs: bool = True  # decode steps recorded, on CUDA
    plugins: tuple[str, ...] | None = None
    model_options: tuple[tuple[str, str], ...] = ()  # of the family
    max_image_tokens: int | None = None  # of one image, for families that can resize


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the API process is told."""

    engine: EngineConfig
    host: str = "127.0.0.1"
    port: int = 8000
    served_names: tuple[str, ...] = ()
    generation_config: Literal["auto", "none"] = "auto"  # none: OpenAI's defaults of sampling instead of the file's
    api_keys: tuple[str, ...] = ()
    allow_remote_without_key: bool = False
    allow_origins: tuple[str, ...] = ()  # of pages in browsers
    root_path: str = ""  # in front of every route, where a proxy leaves it there
    drain_timeout: float = 30.0
    max_body_bytes: int = 64 * 2**20
    max_queue: int = 256
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 40_000_000
    max_images: int = 32
    max_request_pixels: int = 160_000_000
    media_timeout: float = 10.0
    media_allow: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises ConfigError for what must not start. (Who can reach the host: `listen_addresses.check_guarded`.)"""
        check_keys(self.api_keys)
        for origin in self.allow_origins:
            if not ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"--allow-origin {origin!r} is no origin: write it as a browser does, https://app.example.com or "
                    "http://localhost:3000, or * for every one"
                )
        if not ROOT_PATH.fullmatch(self.root_path):
            raise ConfigError(f"--root-path {self.root_path!r} is no path: write /llm")
        if not all(name.strip() for name in self.served_names):
            raise ConfigError("--served-model-name is empty: no request could name the model")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port} is not between 0 and 65535")


IMAGE_TOKENS = 8192  # an image of 6.4 million pixels for Qwen2-VL; more would hold up all others for seconds


def image_limit(configured: int | None, context: int) -> int:
    """Visual tokens that one image may become, unless its family has one size: at most half of the context."""
    return configured if configured is not None else max(1, min(IMAGE_TOKENS, context // 2))
