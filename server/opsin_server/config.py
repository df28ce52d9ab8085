"""Configuration: frozen structs that both processes read. Their annotated fields are the command line's options and the
keys of a configuration file as well (`options.py` makes both of them), so that an option is written once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import msgspec.structs
from msgspec import Meta

from opsin_server.adapter_config import AdapterConfig
from opsin_server.answer_config import AnswerConfig
from opsin_server.api_keys import check_keys
from opsin_server.embedding_config import EmbeddingConfig
from opsin_server.errors import ConfigError
from opsin_server.file_config import FileConfig
from opsin_server.media_limits import MediaLimits
from opsin_server.option import Option
from opsin_server.storage_config import StorageConfig
from opsin_server.webhook_config import WebhookConfig

# As browsers send it: no path, no upper case, no default port. "null" is what a page in a file has.
ORIGIN = re.compile(r"\*|null|(?!http://[^:]+:80$|https://[^:]+:443$)[a-z][a-z0-9+.-]*://[^/\s?#@,*A-Z]+")
DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?")
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")

Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1)]
DType = Literal["auto", "float32", "bfloat16", "float16"]
KvDType = Literal["auto", "int8", "fp8"]
Quantization = Literal["none", "int8", "int4", "fp8"]
Activations = Literal["auto", "always", "never"]


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the engine process is told. None means "auto", settled in `startup.memory_plan.resolve`. Raises ValueError
    for a device that is written wrongly."""

    model: str
    mmproj: Annotated[
        str | None, Option("The vision tower of a model that is a GGUF: llama.cpp's mmproj file.", metavar="FILE")
    ] = None
    device: Annotated[
        str, Option("Where the model runs. cuda:1 is the second GPU.", metavar="<auto|cpu|cuda|cuda:N>")
    ] = "auto"
    dtype: Annotated[DType, Option("auto: float32 on a CPU, else 16 bit.")] = "auto"
    quantization: Annotated[
        Quantization, Option("Store the decoder's weights in fewer bits; its head in 8 at least.")
    ] = "none"
    kv_dtype: Annotated[KvDType, Option("auto: as the model's own type. int8, fp8: in 8 bits.")] = "auto"
    quantize_activations: Annotated[
        Activations,
        Option(
            "Multiply weights of 8 bits with activations of 8 bits. auto: on CUDA, where the checkpoint declares it."
        ),
    ] = "auto"
    quantize_vision: Annotated[bool, Option("With --quantization: the vision tower and the projector too.")] = False
    threads: Annotated[Count, Option("Threads of the engine on a CPU.")] = 1
    max_context: Annotated[
        Annotated[int, Meta(ge=2)] | None, Option("Tokens of prompt and answer. Default: the model's.")
    ] = None
    max_sequences: Annotated[Count, Option("Requests computed at the same time.")] = 64
    max_batch_tokens: Annotated[
        Count | None, Option("Tokens computed in one step. Default: 256 on a CPU, else 2048.")
    ] = None
    kv_memory: Annotated[
        Bytes | None, Option("Keys and values. Default: what is needed, within a share of memory.", metavar="SIZE")
    ] = None
    encoder_memory: Annotated[
        Bytes | None,
        Option(
            "Visual tokens kept for pictures that come again. Default: 256MiB; for models that attend to pictures "
            "outside of the prompt up to 16 of the largest.",
            metavar="SIZE",
        ),
    ] = None
    max_image_tokens: Annotated[
        Count | None,
        Option("Visual tokens of one image, where the family can resize. Default: 8192, at most half of the context."),
    ] = None
    prefix_cache: Annotated[bool, Option("Keep the keys and values of prompts for prompts alike.")] = True
    eager: Annotated[bool, Option("On CUDA: launch decode steps anew, capture none as graphs.")] = False
    max_loras: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Option("Adapters in one batch; 0: none are served. Default: 8, in at most a tenth of what the weights leave."),
    ] = None
    max_lora_rank: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Option("The largest rank of an adapter. Default: 64, 32 or 16, as there is memory."),
    ] = None
    max_cpu_loras: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Option("Adapters kept in the host's memory. Default: as many as --max-loras."),
    ] = None
    lora_projectors: Annotated[
        bool, Option("Room in each slot for a projector that was trained whole (modules_to_save).")
    ] = True
    train_share_min: Annotated[
        Annotated[float, Meta(gt=0, lt=1)],
        Option("Training's share of the time, at least, while there is something to train; idle time counts."),
    ] = 0.15
    train_memory: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Option("For training; 0: none. Default: a fifth of what the weights leave, if that will do.", metavar="SIZE"),
    ] = None
    max_train_jobs: Annotated[Count, Option("Training runs at the same time; each has its part of the memory.")] = 4
    itl_slo_ms: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Option(
            "Milliseconds between two tokens of an answer that training must not stretch. It goes before the share."
        ),
    ] = None
    plugins: Annotated[
        tuple[str, ...] | None, Option("Comma-separated names: the only plugins that may be used.", commas=True)
    ] = None
    model_options: Annotated[
        tuple[str, ...], Option("An option of the model's family.", name="model-option", metavar="NAME=VALUE")
    ] = ()
    block_size: int = 16  # tokens of a KV block; no option
    train_part: float = 0.2  # of what the weights leave, for training where --train-memory does not say; no option

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise ValueError(
                f"--device {self.device!r} is no device: write auto, cpu, cuda, or cuda:1 for the second GPU"
            )

    def tower_file(self) -> Path | None:
        """`mmproj` as a path."""
        return None if self.mmproj is None else Path(self.mmproj)

    def family_options(self) -> dict[str, str]:
        """`model_options` by name. Raises ConfigError for what is no pair, or gives a name two values."""
        found: dict[str, str] = {}
        for text in self.model_options:
            name, equals, value = text.partition("=")
            if not name or not equals:
                raise ConfigError(f"--model-option {text!r}: write NAME=VALUE")
            if found.setdefault(name, value) != value:
                raise ConfigError(f"--model-option {name} is both {found[name]!r} and {value!r}")
        return found


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the API process is told."""

    engine: EngineConfig
    media: MediaLimits = MediaLimits()
    adapters: AdapterConfig = AdapterConfig()
    storage: StorageConfig = StorageConfig()
    files: FileConfig = FileConfig()
    webhooks: WebhookConfig = WebhookConfig()
    embeddings: EmbeddingConfig = EmbeddingConfig()
    answers: AnswerConfig = AnswerConfig()
    host: Annotated[str, Option("Address to listen on; localhost is 127.0.0.1 and ::1.")] = "127.0.0.1"
    port: Annotated[int, Option("Port to listen on; 0 takes a free one.")] = 8000
    served_names: Annotated[
        tuple[str, ...],
        Option(
            "What clients call the model. Default: its folder's name, or its repository's in a Hub cache.",
            name="served-model-name",
        ),
    ] = ()
    generation_config: Annotated[
        Literal["auto", "none"], Option("auto: generation_config.json says how to sample where a request does not.")
    ] = "auto"
    api_keys: Annotated[
        tuple[str, ...],
        Option(
            "A key that clients must send. Default: OPSIN_API_KEY, and OPSIN_API_KEYS with commas between.",
            name="api-key",
        ),
    ] = ()
    allow_remote_without_key: Annotated[bool, Option("Listen beyond this machine although no key is set.")] = False
    allow_origins: Annotated[
        tuple[str, ...], Option("Pages that may ask from a browser; * for all.", name="allow-origin", metavar="ORIGIN")
    ] = ()
    root_path: Annotated[
        str, Option("What a proxy puts in front of every route, and may leave there.", metavar="/PATH")
    ] = ""
    playground: Annotated[bool, Option("A page at /playground, to try the model and see jobs in a browser.")] = True
    max_job_seconds: Annotated[
        Annotated[float, Meta(gt=0)] | None, Option("Of training, after which a job has failed. Default: no limit.")
    ] = None
    max_queue: Annotated[Count, Option("Requests in flight before new ones get 503.")] = 256
    preprocess_threads: Annotated[
        Count | None, Option("Threads that make patches and ids of requests. Default: one a core, at most 8.")
    ] = None
    max_body_bytes: Annotated[Bytes, Option("A request's body.", metavar="SIZE")] = 64 * 2**20
    drain_timeout: Annotated[Annotated[float, Meta(ge=0)], Option("Seconds that running answers get on SIGTERM.")] = (
        30.0
    )

    def without_last_slashes(self) -> ServerConfig:
        """Origins and the root path, as people copy them from a browser's address bar."""
        origins = tuple(origin.rstrip("/") for origin in self.allow_origins)
        return msgspec.structs.replace(self, allow_origins=origins, root_path=self.root_path.rstrip("/"))

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
