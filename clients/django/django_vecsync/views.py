"""Health as this site sees it: what vecsync says, or that nobody says anything. Meant to be mounted at ``/health/``."""

from __future__ import annotations

from datetime import datetime, timezone

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from . import conf
from .errors import VectorStoreError
from .store import VectorStore

#: Seconds that whoever asks for health waits at most: probes give up after ten.
TIMEOUT = 3.0


@require_safe
@never_cache
def health(_request: HttpRequest, part: str = "") -> HttpResponse:
    """``/health/`` and its parts, in vecsync's words and with its status; 503 where it cannot be asked."""
    try:
        status, body = _store().document(f"/health/{part}/" if part else "/health/", timeout=TIMEOUT)
    except (VectorStoreError, ImproperlyConfigured) as error:
        body = {"status": "unhealthy", "timestamp": _now(), "error": f"vecsync: {error}"}
        if part == "ready":
            body["ready"], body["waits_for"] = False, "vecsync"
        status = 503
    return JsonResponse(body, status=status, safe=False)


@require_safe
@never_cache
def live(_request: HttpRequest) -> HttpResponse:
    """Whether this site's process works. Says nothing of vecsync: a restart of the site would not mend that."""
    return JsonResponse({"status": "healthy", "timestamp": _now()})


#: Kept by the process: it remembers which address answered.
_kept: VectorStore | None = None


def _store() -> VectorStore:
    global _kept
    config, kept = conf.load(), _kept
    if kept is None or kept.config != config:
        _kept = kept = VectorStore(config)
    return kept


def _now() -> str:
    return datetime.now(tz=timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds")
