"""System checks: settings that cannot be used, and a pipeline file that disagrees with its model. Connects to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps.config import AppConfig
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from . import conf, pipeline


def check_settings(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> list[checks.CheckMessage]:
    try:
        conf.load()
    except ImproperlyConfigured as error:
        return [checks.Error(problem, id="vecsync.E001") for problem in str(error).split("; ")]
    return []


def check_pipeline(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> list[checks.CheckMessage]:
    try:
        path = conf.load().pipeline_file
    except ImproperlyConfigured:
        return []
    # Where vecsync runs elsewhere, its files are not here: nothing is named, nothing is checked.
    if path is None:
        return []
    found: list[checks.CheckMessage] = []
    files = pipeline.files(path)
    if not files:
        found.append(checks.Warning(f"{path}: there is no pipeline file (*.toml) in it", id="vecsync.W001"))
    for file in files:
        try:
            read = pipeline.read(file)
        except pipeline.PipelineError as error:
            found.append(checks.Warning(str(error), id="vecsync.W001"))
            continue
        model = pipeline.model_of(read.schema, read.table)
        if model is None:
            hint = "Correct source.table, or add the model's app to INSTALLED_APPS."
            said = f"{file}: source.table = {read.schema}.{read.table}: no model has this table"
            found.append(checks.Warning(said, hint=hint, id="vecsync.W002"))
            continue
        for disagreement, remedy in pipeline.disagreements(read, model):
            found.append(checks.Warning(f"{file}: {disagreement}", hint=remedy, obj=model, id="vecsync.W003"))
        for name in read.filters:
            if name not in read.payload:
                said = f"{file}: index.filters names {name}, which document.payload does not"
                found.append(checks.Warning(said, obj=model, id="vecsync.W004"))
    return found
