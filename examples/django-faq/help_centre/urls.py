"""Pages, the admin, and health."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from faq import views

urlpatterns = [
    path("", views.search, name="search"),
    path("faq/<int:pk>/", views.entry, name="entry"),
    # Pages name their icon; the admin does not, and browsers ask here.
    path("favicon.ico", RedirectView.as_view(url=static("faq/icon.svg"))),
    path("admin/", admin.site.urls),
    path("health/", include("django_vecsync.urls")),
]
