"""For those who run the server: is it alive, may it get work, what has it done, which version is it?"""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from opsin_server import __version__
from opsin_server.api.engine_status import why_not_live, why_not_ready
from opsin_server.api.middleware.paths import LIVE, READ, READY
from opsin_server.api.services import ServicesDep

router = APIRouter()


async def live(services: ServicesDep) -> Response:
    """503 only when a restart of the server is all that can help; loading, draining and a dying engine are life."""
    return _health("live", why_not_live(services.engine))


async def ready(services: ServicesDep) -> Response:
    """503 when work should go elsewhere."""
    reason = "The server is shutting down" if services.admission.draining else why_not_ready(services.engine)
    return _health("ready", reason or services.adapters.why_not_ready())


for _path in LIVE:
    router.add_api_route(_path, live, methods=READ)
for _path in READY:
    router.add_api_route(_path, ready, methods=READ)


def _health(status: str, reason: str | None) -> Response:
    if reason is None:
        return JSONResponse({"status": status})
    return JSONResponse({"status": f"not {status}", "reason": reason}, 503)


@router.api_route("/metrics", methods=READ)
async def metrics(services: ServicesDep) -> Response:
    return Response(services.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.api_route("/version", methods=READ)
async def version(services: ServicesDep) -> Response:
    about = {"version": __version__, "model": services.names[0], "fingerprint": services.version}
    return JSONResponse({**about, "digest": services.digest()})
