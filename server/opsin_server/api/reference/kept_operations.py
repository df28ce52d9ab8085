"""The operations on what a server keeps beside jobs: files, batches, webhooks, adapters and aliases."""

from __future__ import annotations

from opsin_server.api.reference.operations import (
    AFTER,
    BYTES,
    JSON,
    STRING,
    TEXT,
    FormField,
    Operation,
    Query,
    Resource,
    limit,
    of,
    order,
)
from opsin_server.api.schemas.adapters import (
    CreateAdapter,
    CreateAlias,
    LoadLoraAdapter,
    PinAdapter,
    PromoteVersion,
    UnloadLoraAdapter,
)
from opsin_server.api.schemas.batches import BatchObject, CreateBatch
from opsin_server.api.schemas.files import (
    PURPOSES,
    CheckFile,
    CompleteUpload,
    CreateUpload,
    DeletedFile,
    FileObject,
    UploadObject,
    UploadPartObject,
)
from opsin_server.api.schemas.pages import Listed
from opsin_server.api.schemas.webhooks import ChangeWebhook, CreateWebhook, RotateSecret, SampleWebhook
from opsin_server.fine_tuning.file_check import FileCheck

FLAG = {"type": "string", "enum": ["true", "false", "1", "0"]}
FILES, FILE = "/v1/files", "/v1/files/{file_id}"
UPLOADS, UPLOAD = "/v1/uploads", "/v1/uploads/{upload_id}"
BATCHES, BATCH = "/v1/batches", "/v1/batches/{batch_id}"
HOOKS, HOOK = "/v1/webhook_endpoints", "/v1/webhook_endpoints/{endpoint_id}"
ADAPTERS, ADAPTER = "/v1/adapters", "/v1/adapters/{name}"
ALIASES, ALIAS = "/v1/aliases", "/v1/aliases/{name}"
FILE_FORM = (
    FormField("file", {"type": "string", "format": "binary"}, "the file", required=True, is_file=True),
    FormField(
        "purpose", {"type": "string", "enum": [*PURPOSES]}, " · ".join(f"`{p}`" for p in PURPOSES), required=True
    ),
    FormField("expires_after[anchor]", {"const": "created_at"}, "`created_at`, with the next"),
    FormField(
        "expires_after[seconds]", {"type": "integer", "minimum": 3600, "maximum": 2_592_000}, "3,600 to 2,592,000"
    ),
)
PART_FORM = (FormField("data", {"type": "string", "format": "binary"}, "up to 64 MiB", required=True, is_file=True),)
ADAPTER_FORM = (
    FormField("file", {"type": "string", "format": "binary"}, "an archive of the adapter", required=True, is_file=True),
    FormField("name", {"type": "string", "minLength": 1, "maxLength": 256}, "of the adapter", required=True),
    FormField("promote", FLAG, "`false`: loaded, and not the current version"),
    FormField("force", FLAG, "`true`: also for another base model than it was trained on"),
)
NOWHERE: tuple[str, ...] = ()
VERSION = Query("version", STRING, "a version's number, as 3 or v3")


KEPT_RESOURCES = (
    Resource(
        "Files",
        (
            Operation(
                "createFile", "POST", FILES, "A file is uploaded, as a form.", (), of(FileObject), form=FILE_FORM
            ),
            Operation(
                "listFiles",
                "GET",
                FILES,
                "All files, in pages.",
                (),
                of(Listed[FileObject]),
                (AFTER, limit(10_000, 10_000), order("desc"), Query("purpose", STRING, "of this purpose alone")),
            ),
            Operation("retrieveFile", "GET", FILE, "What is known of one.", (), of(FileObject)),
            Operation(
                "downloadFile",
                "GET",
                FILE + "/content",
                "Its bytes; of a job's results in base64, and plain to those who accept text/csv.",
                (),
                {BYTES: None, "text/csv": None},
            ),
            Operation(
                "checkFile",
                "POST",
                FILE + "/check",
                "What a job would make of a training file's first lines.",
                (CheckFile,),
                {JSON: FileCheck},
                needs_body=False,
            ),
            Operation("deleteFile", "DELETE", FILE, "It is gone.", (), of(DeletedFile)),
        ),
    ),
    Resource(
        "Uploads",
        (
            Operation(
                "createUpload", "POST", UPLOADS, "A file that comes in parts.", (CreateUpload,), of(UploadObject)
            ),
            Operation(
                "addUploadPart",
                "POST",
                UPLOAD + "/parts",
                "A part, in any order, as a form.",
                (),
                of(UploadPartObject),
                form=PART_FORM,
            ),
            Operation(
                "completeUpload",
                "POST",
                UPLOAD + "/complete",
                "The parts become a file.",
                (CompleteUpload,),
                of(UploadObject),
            ),
            Operation("cancelUpload", "POST", UPLOAD + "/cancel", "The parts are dropped.", (), of(UploadObject)),
        ),
    ),
    Resource(
        "Batches",
        (
            Operation(
                "createBatch", "POST", BATCHES, "A file of requests is answered.", (CreateBatch,), of(BatchObject)
            ),
            Operation(
                "listBatches",
                "GET",
                BATCHES,
                "All batches, the newest first.",
                (),
                of(Listed[BatchObject]),
                (AFTER, limit(20, 100)),
            ),
            Operation("retrieveBatch", "GET", BATCH, "One of them.", (), of(BatchObject)),
            Operation("cancelBatch", "POST", BATCH + "/cancel", "No other line is begun.", (), of(BatchObject)),
        ),
        "[For users](batches.md).",
    ),
    Resource(
        "Webhooks",
        (
            Operation(
                "listWebhookEventTypes",
                "GET",
                "/v1/webhook_event_types",
                "What there is to hear of.",
                (),
                of("list"),
            ),
            Operation(
                "createWebhook",
                "POST",
                HOOKS,
                "Events are sent to an address, signed.",
                (CreateWebhook,),
                of("webhook_endpoint"),
            ),
            Operation("listWebhooks", "GET", HOOKS, "All of them, in pages.", (), of("list"), (AFTER, limit(20, 100))),
            Operation("retrieveWebhook", "GET", HOOK, "One of them.", (), of("webhook_endpoint")),
            Operation(
                "updateWebhook",
                "POST",
                HOOK,
                "What is given is changed.",
                (ChangeWebhook,),
                of("webhook_endpoint"),
                needs_body=False,
            ),
            Operation(
                "deleteWebhook", "DELETE", HOOK, "Nothing more is sent to it.", (), of("webhook_endpoint.deleted")
            ),
            Operation(
                "rotateWebhookSecret",
                "POST",
                HOOK + "/rotate_secret",
                "Another secret signs.",
                (RotateSecret,),
                of("webhook_endpoint"),
                needs_body=False,
            ),
            Operation(
                "testWebhook",
                "POST",
                HOOK + "/test",
                "A sample is sent to it.",
                (SampleWebhook,),
                of("webhook_endpoint.test"),
            ),
        ),
        "[For users](fine-tuning-api.md#webhooks).",
    ),
    Resource(
        "Adapters",
        (
            Operation("listAdapters", "GET", ADAPTERS, "All adapters.", (), of("list"), also=NOWHERE),
            Operation(
                "createAdapter",
                "POST",
                ADAPTERS,
                "A version is loaded: uploaded as a form, or of a directory below `--adapter-dir`.",
                (CreateAdapter,),
                of("adapter.version"),
                form=ADAPTER_FORM,
                status=201,
                also=NOWHERE,
            ),
            Operation(
                "retrieveAdapter", "GET", ADAPTER, "One of them, with its versions.", (), of("adapter"), also=NOWHERE
            ),
            Operation(
                "deleteAdapter",
                "DELETE",
                ADAPTER,
                "All of it is gone, or one version.",
                (),
                {JSON: ""},
                query=(VERSION,),
                also=NOWHERE,
            ),
            Operation(
                "promoteAdapter",
                "POST",
                ADAPTER + "/promote",
                "This version answers from now on.",
                (PromoteVersion,),
                of("adapter"),
                also=NOWHERE,
            ),
            Operation(
                "rollBackAdapter",
                "POST",
                ADAPTER + "/rollback",
                "The version before it answers again.",
                (),
                of("adapter"),
                also=NOWHERE,
            ),
            Operation(
                "pinAdapter",
                "POST",
                ADAPTER + "/pin",
                "It stays in memory, or not.",
                (PinAdapter,),
                of("adapter"),
                needs_body=False,
                also=NOWHERE,
            ),
            Operation(
                "downloadAdapter",
                "GET",
                ADAPTER + "/download",
                "A tar of the files that PEFT reads.",
                (),
                {"application/x-tar": None},
                query=(VERSION,),
                also=NOWHERE,
            ),
            Operation(
                "loadLoraAdapter",
                "POST",
                "/v1/load_lora_adapter",
                "vLLM's way to load one.",
                (LoadLoraAdapter,),
                {TEXT: None},
                names_things=True,
                also=NOWHERE,
            ),
            Operation(
                "unloadLoraAdapter",
                "POST",
                "/v1/unload_lora_adapter",
                "vLLM's way to delete one.",
                (UnloadLoraAdapter,),
                {TEXT: None},
                names_things=True,
                also=NOWHERE,
            ),
        ),
        "[For users](adapters.md). A name may hold slashes.",
    ),
    Resource(
        "Aliases",
        (
            Operation("listAliases", "GET", ALIASES, "All aliases.", (), of("list"), also=NOWHERE),
            Operation(
                "setAlias",
                "POST",
                ALIASES,
                "A name means a model from now on.",
                (CreateAlias,),
                of("alias"),
                status=201,
                names_things=True,
                also=NOWHERE,
            ),
            Operation("retrieveAlias", "GET", ALIAS, "One of them.", (), of("alias"), also=NOWHERE),
            Operation("deleteAlias", "DELETE", ALIAS, "It means nothing more.", (), of("alias"), also=NOWHERE),
        ),
    ),
)
