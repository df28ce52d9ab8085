"""What a request and the objects in it are called in docs/api.md, and what is remarked of each."""

from __future__ import annotations

from pydantic import BaseModel

from opsin_server.api.schemas.adapters import (
    CreateAdapter,
    CreateAlias,
    LoadLoraAdapter,
    PinAdapter,
    PromoteVersion,
    UnloadLoraAdapter,
)
from opsin_server.api.schemas.batches import CreateBatch
from opsin_server.api.schemas.chat_request import ChatRequest, InputOptions, ProcessorOptions, VideoInputOptions
from opsin_server.api.schemas.completion_request import CompletionRequest
from opsin_server.api.schemas.embedding_request import EmbeddingRequest
from opsin_server.api.schemas.files import CheckFile, CompleteUpload, CreateUpload, ExpiresAfter
from opsin_server.api.schemas.fine_tunes import CreateFineTune, LegacyHyperparameters
from opsin_server.api.schemas.fine_tuning import (
    CreateJob,
    Dpo,
    DpoHyperparameters,
    Integration,
    Method,
    Supervised,
    SupervisedHyperparameters,
)
from opsin_server.api.schemas.graders import RunGrader, StringCheck, ValidateGrader
from opsin_server.api.schemas.messages_blocks import Block, ImageSource, ResultBlock, TextBlock
from opsin_server.api.schemas.messages_request import (
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    MessagesTool,
    MessagesToolChoice,
    OutputConfig,
    OutputFormat,
    Thinking,
)
from opsin_server.api.schemas.responses import (
    CompactRequest,
    InputTokensRequest,
    ResponsesRequest,
    ResponseStreamOptions,
    ResponseTool,
    ResponseToolChoice,
    TextFormat,
    TextOptions,
)
from opsin_server.api.schemas.responses_items import InputItem, InputPart
from opsin_server.api.schemas.sampling_fields import StreamOptions
from opsin_server.api.schemas.stored_chats import ChangeStored
from opsin_server.api.schemas.structured_outputs import JsonSchemaFormat, ResponseFormat, StructuredOutputs
from opsin_server.api.schemas.tokenize import DetokenizeRequest, TokenizeTextRequest
from opsin_server.api.schemas.tools import FunctionDefinition, NamedChoice, NamedFunction, Tool
from opsin_server.api.schemas.webhooks import ChangeWebhook, CreateWebhook, RotateSecret, SampleWebhook
from opsin_server.chat.messages import (
    CalledFunction,
    ChatMessage,
    ContentPart,
    FilePart,
    ImageURL,
    MessageToolCall,
    VideoURL,
)

TITLES: dict[type[BaseModel], tuple[str, str]] = {
    RunGrader: ("A grader that is run", ""),
    ValidateGrader: ("A grader that is checked", ""),
    StringCheck: ("A grader", "Its variables are dotted paths, of keys and of numbers."),
    ChatRequest: ("A chat request", ""),
    StreamOptions: ("`stream_options`", "Without a stream they have no effect."),
    Tool: ("A tool", "A function that the answer may call."),
    FunctionDefinition: ("`function`", ""),
    NamedChoice: ("`tool_choice` by name", "This function must be called."),
    NamedFunction: ("The `function` of a `tool_choice`", ""),
    ResponseFormat: ("`response_format`", "What the answer is held to."),
    JsonSchemaFormat: ("`json_schema`", "Whether `strict` is true or not, the answer is held to the schema."),
    StructuredOutputs: ("`structured_outputs`", "What the answer is held to, by vLLM's names: one of the first five."),
    ProcessorOptions: ("`mm_processor_kwargs`", "For all images and videos of the request."),
    InputOptions: ("`media_io_kwargs`", ""),
    VideoInputOptions: ("The `video` of `media_io_kwargs`", "-1 says nothing."),
    ChatMessage: ("A message", ""),
    MessageToolCall: ("A call", "Of an assistant's message."),
    CalledFunction: ("The `function` of a call", ""),
    ContentPart: (
        "A part of a message's content",
        "The types that begin with `input` and `output` are those of OpenAI's Responses API.",
    ),
    ImageURL: ("`image_url`", ""),
    FilePart: ("`file`", ""),
    VideoURL: ("`video_url`", ""),
    ChangeStored: ("A change of a stored chat completion", ""),
    ResponsesRequest: ("A Responses request", ""),
    CompactRequest: ("A conversation that is made short", ""),
    InputTokensRequest: ("A Responses request whose tokens are counted", ""),
    InputItem: (
        "An item of `input`",
        "Others, of built-in tools, are refused by name. An answer's items are accepted as they came.",
    ),
    InputPart: ("A part of an item", "Of a message's content, or of a function's `output`."),
    ResponseTool: ("A tool of a Responses request", "A function, which the client runs."),
    ResponseToolChoice: ("`tool_choice` of a Responses request", "By name: this function must be called."),
    TextOptions: ("`text`", ""),
    TextFormat: ("The `format` of `text`", ""),
    ResponseStreamOptions: ("`stream_options` of a Responses request", ""),
    CompletionRequest: ("A completion request", ""),
    MessagesRequest: ("A message request", ""),
    CountTokensRequest: ("A count of tokens", ""),
    InputMessage: ("A message of Anthropic's API", ""),
    Block: ("A block of its content", "What a block holds is what its type says."),
    ImageSource: ("The `source` of an image", ""),
    ResultBlock: ("A block of a result", ""),
    TextBlock: ("A block of `system`", ""),
    Thinking: (
        "`thinking`",
        "Where the chat template can be told (`enable_thinking`), the model is told not to think.",
    ),
    MessagesTool: ("A tool of Anthropic's API", "None runs on this server."),
    MessagesToolChoice: ("`tool_choice` of Anthropic's API", ""),
    OutputConfig: ("`output_config`", ""),
    OutputFormat: ("The `format` of `output_config`", ""),
    EmbeddingRequest: ("An embeddings request", ""),
    TokenizeTextRequest: ("A prompt for `/tokenize`", ""),
    DetokenizeRequest: ("A request to `/detokenize`", ""),
    CheckFile: ("A check of a training file", "[What it answers](training-data.md#over-the-api)."),
    CreateUpload: ("A new upload", ""),
    ExpiresAfter: ("`expires_after`", ""),
    CompleteUpload: ("An upload's parts", ""),
    CreateJob: ("A new job", ""),
    Method: ("`method`", "The type `reinforcement` is refused by name."),
    Supervised: ("`supervised`", ""),
    SupervisedHyperparameters: ("Hyperparameters", ""),
    Dpo: ("`dpo`", ""),
    DpoHyperparameters: ("Hyperparameters of `dpo`", ""),
    Integration: (
        "An integration",
        "Not OpenAI's: event files in the server's data directory. `wandb` is refused by name.",
    ),
    CreateFineTune: ("A new fine-tune", ""),
    LegacyHyperparameters: ("Hyperparameters of a fine-tune", ""),
    CreateBatch: ("A new batch", ""),
    CreateWebhook: ("A new webhook", ""),
    ChangeWebhook: ("A change of a webhook", ""),
    RotateSecret: ("Another secret of a webhook", ""),
    SampleWebhook: ("A sample for a webhook", ""),
    CreateAdapter: ("A new version of an adapter", ""),
    PromoteVersion: ("A version to promote", ""),
    PinAdapter: ("A pin", ""),
    LoadLoraAdapter: ("An adapter to load, as vLLM has it", ""),
    UnloadLoraAdapter: ("An adapter to unload, as vLLM has it", ""),
    CreateAlias: ("A new alias", ""),
}
