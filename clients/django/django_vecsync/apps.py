"""The app: registers the system check."""

from django.apps import AppConfig
from django.core import checks


class VecsyncConfig(AppConfig):
    name = "django_vecsync"
    verbose_name = "vecsync"

    def ready(self) -> None:
        from .checks import check_pipeline, check_settings

        checks.register(check_settings, "vecsync")
        checks.register(check_pipeline, "vecsync")
