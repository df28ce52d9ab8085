"""The operations that ask the model, or tell of it."""

from __future__ import annotations

from opsin_server.api.middleware.paths import LIVE, READY
from opsin_server.api.reference.operations import (
    AFTER,
    EVENTS,
    JSON,
    STRING,
    TEXT,
    Operation,
    Query,
    Resource,
    limit,
    of,
    order,
)
from opsin_server.api.schemas.chat_request import ChatRequest, DeploymentRequest
from opsin_server.api.schemas.chat_response import Completion
from opsin_server.api.schemas.completion_request import CompletionRequest, DeploymentCompletionRequest
from opsin_server.api.schemas.completion_response import TextCompletion
from opsin_server.api.schemas.embedding_request import DeploymentEmbeddingRequest, EmbeddingRequest
from opsin_server.api.schemas.embedding_response import EmbeddingList
from opsin_server.api.schemas.messages_request import CountTokensRequest, MessagesRequest
from opsin_server.api.schemas.messages_response import MessageAnswer, TokensCount
from opsin_server.api.schemas.responses import CompactRequest, InputTokensRequest, ResponsesRequest
from opsin_server.api.schemas.stored_chats import ChangeStored
from opsin_server.api.schemas.tokenize import (
    Detokenized,
    DetokenizeRequest,
    TokenizeChatRequest,
    Tokenized,
    TokenizeTextRequest,
)

CHATS, STORED = "/v1/chat/completions", "/v1/chat/completions/{answer_id}"
RESPONSES, RESPONSE = "/v1/responses", "/v1/responses/{response_id}"
MODELS, MODEL = "/v1/models", "/v1/models/{name}"
DEPLOYMENT = "/deployments/{name}"
PAGE = (AFTER, limit(20, 100))
LABELS = Query(
    "metadata", {"type": "object", "additionalProperties": STRING}, "answers with this value under KEY", deep=True
)
INCLUDE = tuple(Query(name, STRING, "ignored: all is shown") for name in ("include", "include[]"))
REPLAY = (
    Query("stream", {"type": "boolean"}, "`true`: as events, each part in one delta"),
    Query("starting_after", {"type": "integer", "minimum": 0}, "with `stream`: the events with greater numbers alone"),
    Query("include_obfuscation", {"type": "boolean"}, "with `stream`: deltas have padding, which hides their lengths"),
)
ANTHROPICS_PAGE = (
    Query("limit", {}, "of requests with `anthropic-version` alone, as the next: 1 to 1,000"),
    Query("after_id", STRING, "what follows the model of this id"),
    Query("before_id", STRING, "what stands in front of it"),
)

CHAT = Resource(
    "Chat completions",
    (
        Operation(
            "createChatCompletion",
            "POST",
            CHATS,
            "An answer to a conversation with pictures, whole or as a stream.",
            (ChatRequest,),
            {JSON: Completion, EVENTS: None},
        ),
        Operation(
            "createDeploymentChatCompletion",
            "POST",
            "/openai/deployments/{name}/chat/completions",
            "The same at Azure's address, which names the model.",
            (DeploymentRequest,),
            {JSON: Completion, EVENTS: None},
            also=(DEPLOYMENT + "/chat/completions",),
        ),
    ),
    "Behind it [other routes](other-apis.md).",
)

STORED_CHATS = Resource(
    "Stored chat completions",
    (
        Operation(
            "listChatCompletions",
            "GET",
            CHATS,
            "Answers that were kept, in pages.",
            (),
            of("list"),
            (*PAGE, order("asc"), Query("model", STRING, "of this model alone"), LABELS),
            only_with_store=True,
        ),
        Operation("getChatCompletion", "GET", STORED, "One of them.", (), of("chat.completion"), only_with_store=True),
        Operation(
            "updateChatCompletion",
            "POST",
            STORED,
            "Other metadata for it.",
            (ChangeStored,),
            of("chat.completion"),
            only_with_store=True,
        ),
        Operation(
            "deleteChatCompletion",
            "DELETE",
            STORED,
            "It is gone.",
            (),
            of("chat.completion.deleted"),
            only_with_store=True,
        ),
        Operation(
            "getChatCompletionMessages",
            "GET",
            STORED + "/messages",
            "The messages that it answers, in pages.",
            (),
            of("list"),
            (*PAGE, order("asc")),
            only_with_store=True,
        ),
    ),
    "Of a server with `--store`; without it there are no such routes ([kept answers](responses.md)).",
)

RESPONSE_ROUTES = Resource(
    "Responses",
    (
        Operation(
            "createResponse",
            "POST",
            RESPONSES,
            "An answer to items, whole or as a stream of events.",
            (ResponsesRequest,),
            {JSON: "response", EVENTS: None},
        ),
        Operation(
            "compactResponse",
            "POST",
            RESPONSES + "/compact",
            "A conversation made short, as items for the next input.",
            (CompactRequest,),
            of("response.compaction"),
        ),
        Operation(
            "getInputTokens",
            "POST",
            RESPONSES + "/input_tokens",
            "How many tokens such a prompt has, those of its pictures too.",
            (InputTokensRequest,),
            of("response.input_tokens"),
        ),
        Operation(
            "getResponse",
            "GET",
            RESPONSE,
            "One that was kept, whole or as a stream of events.",
            (),
            {JSON: "response", EVENTS: None},
            (*REPLAY, *INCLUDE),
        ),
        Operation(
            "cancelResponse",
            "POST",
            RESPONSE + "/cancel",
            "One that was kept, as it is: it has ended, and there is nothing to cancel.",
            (),
            of("response"),
        ),
        Operation("deleteResponse", "DELETE", RESPONSE, "It is gone.", (), of("response")),
        Operation(
            "listInputItems",
            "GET",
            RESPONSE + "/input_items",
            "What it answers, in pages.",
            (),
            of("list"),
            (*PAGE, order("desc"), *INCLUDE),
        ),
    ),
    "[For users](responses.md).",
)

OTHERS = (
    Resource(
        "Completions",
        (
            Operation(
                "createCompletion",
                "POST",
                "/v1/completions",
                "Raw texts or ids, which are continued, whole or as a stream.",
                (CompletionRequest,),
                {JSON: TextCompletion, EVENTS: None},
            ),
            Operation(
                "createDeploymentCompletion",
                "POST",
                "/openai/deployments/{name}/completions",
                "The same at Azure's address, which names the model.",
                (DeploymentCompletionRequest,),
                {JSON: TextCompletion, EVENTS: None},
                also=(DEPLOYMENT + "/completions",),
            ),
        ),
    ),
    Resource(
        "Messages of Anthropic's API",
        (
            Operation(
                "createMessage",
                "POST",
                "/v1/messages",
                "An answer, whole or as a stream of events.",
                (MessagesRequest,),
                {JSON: MessageAnswer, EVENTS: None},
                has_anthropics_errors=True,
            ),
            Operation(
                "countMessageTokens",
                "POST",
                "/v1/messages/count_tokens",
                "The tokens of a prompt, those of its pictures too.",
                (CountTokensRequest,),
                {JSON: TokensCount},
                has_anthropics_errors=True,
            ),
        ),
        "[For users](other-apis.md#anthropics-api).",
    ),
    Resource(
        "Embeddings",
        (
            Operation(
                "createEmbedding",
                "POST",
                "/v1/embeddings",
                "A vector for each text or picture.",
                (EmbeddingRequest,),
                {JSON: EmbeddingList},
            ),
            Operation(
                "createDeploymentEmbedding",
                "POST",
                "/openai/deployments/{name}/embeddings",
                "The same at Azure's address, which names the model.",
                (DeploymentEmbeddingRequest,),
                {JSON: EmbeddingList},
                also=(DEPLOYMENT + "/embeddings",),
            ),
        ),
        "[All of it](embeddings.md). Of `input` and `messages` one is given.",
    ),
    Resource(
        "Tokens",
        (
            Operation(
                "tokenize",
                "POST",
                "/tokenize",
                "What a prompt or a conversation is to the model.",
                (TokenizeTextRequest, TokenizeChatRequest),
                {JSON: Tokenized},
            ),
            Operation(
                "detokenize", "POST", "/detokenize", "The text of tokens.", (DetokenizeRequest,), {JSON: Detokenized}
            ),
        ),
        "As vLLM has them. Of a conversation `/tokenize` takes the fields of a chat request, and `return_token_strs`.",
    ),
    Resource(
        "Models",
        (
            Operation(
                "listModels",
                "GET",
                MODELS,
                "What the served model, its adapters and its aliases are called.",
                (),
                of("list"),
                ANTHROPICS_PAGE,
            ),
            Operation("retrieveModel", "GET", MODEL, "One of them.", (), of("model")),
            Operation("deleteModel", "DELETE", MODEL, "An adapter or an alias is gone.", (), of("model")),
        ),
        "In Anthropic's form where a request has an `anthropic-version` header. `architecture.input_modalities` says "
        "what a model takes (as OpenRouter has it: `text`, `image`, and `video` where files are decoded), and "
        '`limit_mm_per_prompt` how many of each a prompt may have, as `{"image": 32, "video": 4}`.',
    ),
    Resource(
        "The server",
        (
            Operation(
                "live",
                "GET",
                LIVE[0],
                "Is it alive? 503 when only a restart can help.",
                (),
                {JSON: ""},
                also=LIVE[1:],
                needs_key=False,
            ),
            Operation(
                "ready",
                "GET",
                READY[0],
                "May it get work? 503 when not.",
                (),
                {JSON: ""},
                also=READY[1:],
                needs_key=False,
            ),
            Operation(
                "metrics",
                "GET",
                "/metrics",
                "Prometheus's text ([all metrics](reference.md#metrics)).",
                (),
                {TEXT: None},
            ),
            Operation("version", "GET", "/version", "Of the server and of the model.", (), {JSON: ""}),
            Operation("openapi", "GET", "/openapi.json", "This API as an OpenAPI 3.1 document.", (), {JSON: ""}),
        ),
    ),
)

ANSWER_RESOURCES = (CHAT, STORED_CHATS, RESPONSE_ROUTES, *OTHERS)
