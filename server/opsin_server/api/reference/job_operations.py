"""The operations on fine-tuning jobs, and on OpenAI's legacy objects over them."""

from __future__ import annotations

from opsin_server.api.reference.operations import AFTER, EVENTS, JSON, STRING, Operation, Query, Resource, limit, of
from opsin_server.api.schemas.fine_tunes import CreateFineTune
from opsin_server.api.schemas.fine_tuning import CreateJob
from opsin_server.api.schemas.fine_tuning_response import CheckpointObject, JobEventObject, JobObject
from opsin_server.api.schemas.graders import RunGrader, ValidateGrader
from opsin_server.api.schemas.pages import Listed

JOBS, JOB = "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/{job_id}"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{model}/permissions"
GRADERS = "/v1/fine_tuning/alpha/graders"
TUNES, TUNE = "/v1/fine_tunes", "/v1/fine_tunes/{fine_tune_id}"
LABELS = Query(
    "metadata",
    {"type": "object", "additionalProperties": STRING},
    "jobs with this value under KEY; `metadata=null`: those without",
    deep=True,
)


def legacy(path: str) -> tuple[str, ...]:
    """The names under which legacy fine-tunes were known."""
    other = path.replace("/fine_tunes", "/fine-tunes")
    return (path.removeprefix("/v1"), other, other.removeprefix("/v1"))


JOB_RESOURCES = (
    Resource(
        "Fine-tuning jobs",
        (
            Operation("createFineTuningJob", "POST", JOBS, "A job is made.", (CreateJob,), of(JobObject)),
            Operation(
                "listPaginatedFineTuningJobs",
                "GET",
                JOBS,
                "All jobs, the newest first.",
                (),
                of(Listed[JobObject]),
                (AFTER, limit(20, 1000), LABELS),
            ),
            Operation("retrieveFineTuningJob", "GET", JOB, "One of them.", (), of(JobObject)),
            *(
                Operation(f"{verb}FineTuningJob", "POST", f"{JOB}/{verb}", said, (), of(JobObject))
                for verb, said in (
                    ("cancel", "It ends after its step."),
                    ("pause", "It waits after its step."),
                    ("resume", "It goes on."),
                )
            ),
            Operation(
                "listFineTuningEvents",
                "GET",
                JOB + "/events",
                "What happened, the newest first.",
                (),
                of(Listed[JobEventObject]),
                (AFTER, limit(20, 1000)),
            ),
            Operation(
                "listFineTuningJobCheckpoints",
                "GET",
                JOB + "/checkpoints",
                "Its checkpoints, the newest first.",
                (),
                of(Listed[CheckpointObject]),
                (AFTER, limit(10, 1000)),
            ),
            Operation(
                "listCheckpointPermissions",
                "GET",
                PERMISSIONS,
                "There are none: whoever has a key may use all models.",
                (),
                of("list"),
                (AFTER, limit(10, 1000), Query("order", STRING, "ignored"), Query("project_id", STRING, "ignored")),
            ),
            *(
                Operation(f"{verb}CheckpointPermissions", method, PERMISSIONS, "Refused: there are none.")
                for verb, method in (("create", "POST"), ("deleteAll", "DELETE"))
            ),
            Operation(
                "deleteCheckpointPermission",
                "DELETE",
                PERMISSIONS + "/{permission}",
                "Refused, as the others.",
            ),
        ),
        "[For users](fine-tuning-api.md). An `Idempotency-Key` of at most 256 characters makes one job of a request "
        "that is sent again.",
    ),
    Resource(
        "Graders",
        (
            Operation(
                "runGrader", "POST", GRADERS + "/run", "A grader is tried on one sample.", (RunGrader,), {JSON: ""}
            ),
            Operation(
                "validateGrader",
                "POST",
                GRADERS + "/validate",
                "Would it be run?",
                (ValidateGrader,),
                {JSON: ""},
            ),
        ),
        "Nothing learns from them: there is no reinforcement fine-tuning.",
    ),
    Resource(
        "Fine-tunes of OpenAI's legacy API",
        (
            Operation(
                "createFineTune",
                "POST",
                TUNES,
                "A job is made.",
                (CreateFineTune,),
                of("fine-tune"),
                also=legacy(TUNES),
            ),
            Operation("listFineTunes", "GET", TUNES, "All jobs.", (), of("list"), also=legacy(TUNES)),
            Operation("retrieveFineTune", "GET", TUNE, "One of them.", (), of("fine-tune"), also=legacy(TUNE)),
            Operation(
                "cancelFineTune",
                "POST",
                TUNE + "/cancel",
                "It ends after its step.",
                (),
                of("fine-tune"),
                also=legacy(TUNE + "/cancel"),
            ),
            Operation(
                "listFineTuneEvents",
                "GET",
                TUNE + "/events",
                "What happened, the oldest first.",
                (),
                {JSON: "list", EVENTS: None},
                (
                    Query(
                        "stream",
                        {"type": "string", "enum": ["true", "false"]},
                        "`true`: as events, until the job has ended",
                    ),
                ),
                also=legacy(TUNE + "/events"),
            ),
        ),
    ),
)
