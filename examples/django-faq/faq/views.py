"""The search page and the page of one entry."""

import functools
import logging

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe
from django_vecsync import (
    SearchResults,
    VectorStore,
    VectorStoreError,
    VectorStoreFactory,
    VectorStoreOverloaded,
    VectorStoreRefused,
    VectorStoreTimeout,
    VectorStoreUnauthorized,
)

from .models import FAQ

logger = logging.getLogger(__name__)
#: Longest question: vecsync takes 4,096 characters, and nobody asks that much.
QUESTION_MAX = 500
#: Below this, what fits best is not shown: this site's choice, to be made anew for other texts.
SCORE_MIN = 0.25


@require_safe
def search(request: HttpRequest) -> HttpResponse:
    """The best answer with its source, and others that fit. A search that fails is said to have failed."""
    question = " ".join(request.GET.get("q", "").replace("\0", " ").split())[:QUESTION_MAX]
    category = request.GET.get("category", "").replace("\0", "")
    context = {
        "question": question,
        "category": category,
        "categories": FAQ.objects.filter(is_active=True).order_by("category").values_list("category", flat=True).distinct(),
        "question_max": QUESTION_MAX,
    }
    status = 200
    if question:
        try:
            context |= found(question, category)
        except VectorStoreError as error:
            status, context["failure"] = failure(error)
            logger.warning("search: %s", error)
    answer = render(request, "faq/search.html", context, status=status)
    if status == 503:
        answer["Retry-After"] = "5"
    return answer


@require_safe
def entry(request: HttpRequest, pk: int) -> HttpResponse:
    return render(request, "faq/entry.html", {"faq": get_object_or_404(FAQ, pk=pk, is_active=True)})


@functools.cache
def store() -> VectorStore:
    """One for the process: it remembers which of several addresses answered."""
    return VectorStoreFactory.create_production_store()


def found(question: str, category: str) -> dict[str, object]:
    results: SearchResults = store().search(
        question, limit=6, min_score=SCORE_MIN, filters={"category": category} if category else None
    )
    return {
        "results": results,
        "best": results[0] if results else None,
        "others": results[1:],
        # A moment of staleness is how it works; this is what a reader may notice.
        "stale_s": results.staleness_ms // 1000 if results.staleness_ms and results.staleness_ms >= 10_000 else None,
    }


def failure(error: VectorStoreError) -> tuple[int, str]:
    """The status and what a visitor is told. The reason is for the log."""
    if isinstance(error, VectorStoreUnauthorized):
        return 503, "Search is not set up correctly. We have been told."
    if isinstance(error, VectorStoreRefused):
        return 400, "This question cannot be searched for. Try other words."
    if isinstance(error, VectorStoreOverloaded):
        return 503, "Too many people are searching just now. Please try again in a moment."
    if isinstance(error, VectorStoreTimeout):
        return 503, "Search took too long. Please try again in a moment."
    return 503, "Search is not available just now. Please try again in a moment."
