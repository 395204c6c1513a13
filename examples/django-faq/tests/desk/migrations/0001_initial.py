import django.db.models.deletion
from django.db import migrations, models

KEY = ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"))


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(name="Category", fields=[KEY, ("name", models.CharField(max_length=50))]),
        migrations.CreateModel(name="Tag", fields=[KEY, ("name", models.CharField(max_length=50))]),
        migrations.CreateModel(
            name="Entry",
            fields=[
                KEY,
                ("question", models.CharField(max_length=255)),
                ("answer", models.TextField()),
                ("is_active", models.BooleanField(default=True)),
                (
                    "category",
                    models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, to="desk.category"),
                ),
                ("tags", models.ManyToManyField(to="desk.tag")),
            ],
        ),
    ]
