"""Where the health views are mounted."""

from django.urls import include, path

urlpatterns = [path("health/", include("django_vecsync.urls"))]
