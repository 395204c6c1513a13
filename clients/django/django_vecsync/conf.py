"""Where vecsync is and how it is asked: ``settings.VECSYNC``, the environment, ``.env``, in this order. Connects to nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

#: Keys of ``settings.VECSYNC``.
KEYS = ("URL", "API_KEY", "PIPELINE", "PIPELINE_FILE", "TIMEOUT", "CONNECT_TIMEOUT", "RETRIES", "STORE_TYPE", "ENV_FILE")
DEFAULT_URL = "http://127.0.0.1:8000"
#: In front of a key that may search, and not command; it is not sent.
SEARCH_ONLY = "search:"


@dataclass(frozen=True)
class Config:
    """Everything that a store and the commands need."""

    #: One address or several that answer alike, tried in turn.
    urls: tuple[str, ...]
    api_key: str | None = field(repr=False)
    #: What commands are asked for with: of several keys the first that may command.
    command_key: str | None = field(repr=False)
    #: With several pipelines in one vecsync: which; ``None``: the only or the default one.
    pipeline: str | None
    #: The pipeline file, for the system check.
    pipeline_file: Path | None
    #: Seconds that a caller waits at most, attempts and pauses included.
    timeout: float
    #: Seconds for a connection.
    connect_timeout: float
    #: Further attempts after a failed one.
    retries: int
    #: ``qdrant`` or ``local``, as vecsync has it; ``None``: not said.
    store_type: str | None

    def path(self, path: str) -> str:
        """Where something is asked of the pipeline."""
        return f"/pipelines/{quote(self.pipeline, safe='')}{path}" if self.pipeline else path


def load() -> Config:
    """Reads the settings. Every problem is in the exception, not only the first."""
    given = getattr(settings, "VECSYNC", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"VECSYNC = {given!r}: wanted a dictionary")
    problems = [f"VECSYNC[{key!r}]: no such setting; there are {', '.join(KEYS)}" for key in given if key not in KEYS]
    try:
        file = _env_file(given)
    except ImproperlyConfigured as error:
        file, problems = {}, [*problems, str(error)]

    def text(key: str, name: str, default: str | None = None) -> str | None:
        value = given.get(key)
        if value is None or value == "":
            value = os.environ.get(name) or file.get(name) or default
        if value is not None and not isinstance(value, (str, Path)):
            problems.append(f"VECSYNC[{key!r}]: wanted a text")
            return default
        return None if value is None else str(value)

    def number(key: str, default: float, least: float, most: float) -> float:
        value = given.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            problems.append(f"VECSYNC[{key!r}] = {value!r}: wanted a number from {least:g} to {most:g}")
            return default
        return float(value)

    urls = _urls(given, file, problems)
    store_type = text("STORE_TYPE", "RAG_VECTOR_STORE_TYPE")
    if store_type not in (None, "qdrant", "local"):
        problems.append(f"RAG_VECTOR_STORE_TYPE = {store_type!r}: wanted qdrant or local")
    pipeline = text("PIPELINE", "")
    if pipeline is not None and not re.fullmatch(r"[a-z0-9_]+", pipeline):
        problems.append(f"VECSYNC['PIPELINE'] = {pipeline!r}: wanted lower-case letters, digits and underscores")
    pipeline_file = text("PIPELINE_FILE", "VECSYNC_PIPELINE")
    retries = number("RETRIES", 2, 0, 10)
    api_key, command_key = _api_keys(given, file, problems)
    config = Config(
        urls=urls,
        api_key=api_key,
        command_key=command_key,
        pipeline=pipeline,
        pipeline_file=Path(pipeline_file) if pipeline_file else None,
        timeout=number("TIMEOUT", 5.0, 0.05, 600),
        connect_timeout=number("CONNECT_TIMEOUT", 1.0, 0.01, 60),
        retries=int(retries),
        store_type=store_type,
    )
    if problems:
        raise ImproperlyConfigured("; ".join(problems))
    return config


def _urls(given: Mapping[str, Any], file: Mapping[str, str], problems: list[str]) -> tuple[str, ...]:
    value = given.get("URL") or os.environ.get("VECSYNC_URL") or file.get("VECSYNC_URL")
    listen = os.environ.get("VECSYNC_LISTEN") or file.get("VECSYNC_LISTEN")
    if not value and listen:
        # Every address is a place to listen, not one to connect to.
        value = "http://" + re.sub(r"^(0\.0\.0\.0|\[::\])?:", "127.0.0.1:", listen)
    if not value:
        value = DEFAULT_URL
    parts = (
        [part.strip() for part in value.split(",")]
        if isinstance(value, str)
        else list(value if isinstance(value, (list, tuple)) else [value])
    )
    urls = []
    for part in parts:
        try:
            url = urlsplit(part)
            fits = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
            fits = fits and not (url.query or url.fragment or url.username or url.password)
            # A name with an empty or too long part is none; neither is a path that no request line could hold.
            (url.hostname or "").encode("idna")
            fits = fits and url.path.isascii() and part.isprintable() and " " not in part
        except (ValueError, TypeError, AttributeError):
            fits = False
        if fits:
            urls.append(part.rstrip("/"))
        else:
            # Not repeated: a key may have been pasted into it.
            problems.append("VECSYNC['URL']: wanted http://host:port or https://host:port, one or several")
    return tuple(urls) or (DEFAULT_URL,)


def _api_keys(given: Mapping[str, Any], file: Mapping[str, str], problems: list[str]) -> tuple[str | None, str | None]:
    """The key to search with, and the one to command with. Of several each is used for what it may."""

    def of(name: str) -> str | None:
        return os.environ.get(name) or file.get(name)

    own = given.get("API_KEY")
    keys = [own] if own else _keys(of("VECSYNC_API_KEYS") or "")
    path = of("VECSYNC_API_KEYS_FILE")
    if not keys and path:
        try:
            keys = _keys(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"VECSYNC_API_KEYS_FILE = {path!r}: cannot be read: {type(error).__name__}")
    for key in keys:
        if not isinstance(key, str) or not key.isascii() or not key.isprintable() or " " in key:
            problems.append("VECSYNC['API_KEY']: wanted printable ASCII characters without blanks")
            return None, None
    searching = [key.removeprefix(SEARCH_ONLY) for key in keys if key.startswith(SEARCH_ONLY)]
    commanding = [key for key in keys if not key.startswith(SEARCH_ONLY)]
    return next(iter([*searching, *commanding]), None), next(iter([*commanding, *searching]), None)


def _keys(text: str) -> list[Any]:
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [key.strip() for line in lines for key in line.split(",") if key.strip()]


def _env_file(given: Mapping[str, Any]) -> dict[str, str]:
    path = given.get("ENV_FILE")
    if path is None:
        base = getattr(settings, "BASE_DIR", None)
        path = Path(base) / ".env" if base else Path(".env")
        if not path.is_file():
            return {}
    try:
        return parse_env(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise ImproperlyConfigured(f"VECSYNC['ENV_FILE'] {path}: cannot be read: {type(error).__name__}") from error


_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*(.*)", re.DOTALL)
_NAME = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


def parse_env(text: str) -> dict[str, str]:
    """``NAME=value`` lines as vecsync reads them. Single quotes take everything as it stands."""
    found: dict[str, str] = {}

    def expanded(value: str) -> str:
        def name(match: re.Match[str]) -> str:
            key = match[1] or match[2]
            return os.environ.get(key, found.get(key, ""))

        return _NAME.sub(name, value)

    for line in text.splitlines():
        match = None if line.lstrip().startswith("#") else _LINE.fullmatch(line)
        if not match:
            continue
        key, value = match[1], match[2].strip()
        if value[:1] == "'" and (end := value.find("'", 1)) > 0:
            found[key] = value[1:end]
        elif value[:1] == '"' and (quoted := re.match(r'"((?:[^"\\]|\\.)*)"', value)):
            found[key] = expanded(re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), quoted[1]))
        else:
            found[key] = expanded(re.sub(r"\s+#.*", "", value))
    return found
