"""Publishes the table to vecsync. Where somebody did already, nothing is changed."""

from django.db import migrations
from django_vecsync.operations import Publish


class Migration(migrations.Migration):
    dependencies = [("faq", "0001_initial")]
    operations = [Publish("FAQ", publication="vecsync_faq")]
