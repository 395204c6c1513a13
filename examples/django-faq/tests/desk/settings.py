"""The site's settings, with the app of these tests."""

from help_centre.settings import *  # noqa: F403
from help_centre.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.desk"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
