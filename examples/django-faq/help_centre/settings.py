"""Settings of the site: from the environment, or from a file .env beside manage.py.

DATABASE_URL and DJANGO_SECRET_KEY are needed; DJANGO_DEBUG=true is for this machine alone. vecsync's settings keep their names.
"""

import os
import secrets
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from django_vecsync.conf import parse_env
from psycopg.conninfo import conninfo_to_dict

BASE_DIR = Path(__file__).resolve().parent.parent
FILE = parse_env((BASE_DIR / ".env").read_text(encoding="utf-8")) if (BASE_DIR / ".env").is_file() else {}


def setting(name: str, default: str = "") -> str:
    return os.environ.get(name) or FILE.get(name) or default


def words(name: str, default: str = "") -> list[str]:
    return [word.strip() for word in setting(name, default).split(",") if word.strip()]


DEBUG = setting("DJANGO_DEBUG", "false").lower() == "true"
SECRET_KEY = setting("DJANGO_SECRET_KEY")
if path := setting("DJANGO_SECRET_KEY_FILE"):
    SECRET_KEY = Path(path).read_text(encoding="utf-8").strip()
if not SECRET_KEY:
    if not DEBUG:
        raise ImproperlyConfigured("DJANGO_SECRET_KEY is not set")
    # Who looks at the site on his own machine logs in again after a restart.
    SECRET_KEY = secrets.token_hex(32)
ALLOWED_HOSTS = words("DJANGO_ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]")
CSRF_TRUSTED_ORIGINS = words("DJANGO_CSRF_TRUSTED_ORIGINS")


def database() -> dict[str, object]:
    """DATABASE_URL as libpq reads it, and as vecsync has it."""
    url = setting("DATABASE_URL")
    if not url:
        raise ImproperlyConfigured("DATABASE_URL is not set")
    given = conninfo_to_dict(url)
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    found: dict[str, object] = {"ENGINE": "django.db.backends.postgresql"}
    found |= {ours: str(given.pop(theirs)) for theirs, ours in names.items() if theirs in given}
    return {**found, "OPTIONS": given}


DATABASES = {"default": database()}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_vecsync",
    "faq",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "help_centre.urls"
WSGI_APPLICATION = "help_centre.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = setting("DJANGO_STATIC_ROOT", str(BASE_DIR / "static"))
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"

# VECSYNC_URL, VECSYNC_API_KEYS and the like come from the environment. The pipeline file is here for the system check alone.
VECSYNC = {"TIMEOUT": 3.0, "PIPELINE_FILE": setting("FAQ_PIPELINE_FILE", str(BASE_DIR / "pipeline.toml"))}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "INFO"},
    # Each search with its store, time and age; a question is never logged.
    "loggers": {"faq.rag.components.vector_store": {"level": setting("FAQ_STORE_LOG", "INFO").upper()}},
}
