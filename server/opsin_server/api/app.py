"""The API process's application: routes, and what stands around them."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from opsin_server.api.middleware import error_responses
from opsin_server.api.middleware.anthropic import AnthropicFormMiddleware
from opsin_server.api.middleware.auth import AuthMiddleware
from opsin_server.api.middleware.cors import BrowserOriginsMiddleware
from opsin_server.api.middleware.error_responses import ErrorResponsesMiddleware
from opsin_server.api.middleware.header_limits import HeaderLimitsMiddleware
from opsin_server.api.middleware.paths import PROBES, PathMiddleware
from opsin_server.api.middleware.request_log import RequestLogMiddleware
from opsin_server.api.routes import adapters as routes_of_adapters
from opsin_server.api.routes import (
    aliases,
    batches,
    chat,
    completions,
    embeddings,
    fine_tunes,
    graders,
    health,
    messages,
    models,
    openapi,
    playground,
    responses,
    stored_chats,
    tokenize,
    uploads,
    vllm_adapters,
    webhooks,
)
from opsin_server.api.routes import files as routes_of_files
from opsin_server.api.routes import fine_tuning as routes_of_jobs
from opsin_server.api.services import Services


def create_app(services: Services) -> FastAPI:
    """Whoever calls it opens the services and closes them, and starts and stops the engine."""
    config = services.config
    services.metrics.watch(services.engine.engines, lambda: len(services.admission), services.names[0])
    app = FastAPI(
        title="Opsin",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would be built from the Host header
        exception_handlers={HTTPException: error_responses.leave},
    )
    app.state.services = services
    for route in (
        chat,
        completions,
        embeddings,
        tokenize,
        models,
        routes_of_adapters,
        aliases,
        vllm_adapters,
        health,
        openapi,
    ):
        app.include_router(route.router)
    for below in (
        routes_of_files,
        uploads,
        routes_of_jobs,
        graders,
        fine_tunes,
        batches,
        webhooks,
        responses,
        messages,
    ):
        app.include_router(_with_and_without_version(below.router))
    open_paths = PROBES
    if config.playground:
        app.include_router(playground.router)
        open_paths |= playground.PATHS
    if services.answers is not None:
        app.include_router(_with_and_without_version(stored_chats.router))
    app.add_middleware(AnthropicFormMiddleware)
    app.add_middleware(
        AuthMiddleware, keys=config.api_keys, open_paths=open_paths
    )  # the last one added is the outermost
    app.add_middleware(PathMiddleware, root_path=config.root_path)
    app.add_middleware(HeaderLimitsMiddleware)
    app.add_middleware(ErrorResponsesMiddleware)
    if config.allow_origins:
        app.add_middleware(BrowserOriginsMiddleware, origins=config.allow_origins)
    app.add_middleware(RequestLogMiddleware, metrics=services.metrics, version=services.version)
    return app


def _with_and_without_version(router: APIRouter) -> APIRouter:
    """The same routes below /v1 and without it: clients' bases end in either."""
    found = APIRouter()
    for route in router.routes:
        assert isinstance(route, APIRoute)
        for prefix in ("", "/v1"):
            path, methods = prefix + route.path, sorted(route.methods or ())
            found.add_api_route(path, route.endpoint, methods=methods, response_model=None)
    return found
