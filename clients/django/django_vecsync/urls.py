"""``path("health/", include("django_vecsync.urls"))``."""

from django.urls import re_path

from . import views

app_name = "vecsync"

# With and without the slash at the end, as vecsync itself.
urlpatterns = [
    re_path(r"^$", views.health, name="health"),
    re_path(r"^live/?$", views.live, name="live"),
    *(
        re_path(rf"^{part}/?$", views.health, {"part": part}, name=part)
        for part in ("detailed", "vector-store", "qdrant", "ready")
    ),
]
