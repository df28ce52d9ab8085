"""Graders as OpenAI's alpha API has them: tried on one sample. No job learns from them here."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request

from opsin_server.api.answer.grade import grade
from opsin_server.api.routes.read_body import parse, read_body
from opsin_server.api.schemas.graders import RunGrader, ValidateGrader, described_run

router = APIRouter(prefix="/fine_tuning/alpha/graders")

BODY = 2**20  # bytes


@router.post("/run")
async def run_grader(request: Request) -> dict[str, Any]:
    body, start = parse(RunGrader, await read_body(request, BODY)), time.monotonic()
    reward, errors = await asyncio.to_thread(grade, body)
    return described_run(body.grader, reward, errors, time.monotonic() - start)


@router.post("/validate")
async def validate_grader(request: Request) -> dict[str, Any]:
    body = parse(ValidateGrader, await read_body(request, BODY))
    return {"grader": body.grader.model_dump()}
