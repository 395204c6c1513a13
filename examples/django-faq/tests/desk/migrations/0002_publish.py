from django.db import migrations
from django_vecsync.operations import Publish


class Migration(migrations.Migration):
    dependencies = [("desk", "0001_initial")]
    operations = [Publish("Entry", publication="vecsync_entry", grant_to="vecsync", related=["category", "tags"])]
