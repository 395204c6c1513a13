"""Models of every shape that a pipeline file is made from."""

from django.db import models


class Category(models.Model):
    name = models.CharField(max_length=50)


class FAQ(models.Model):
    question = models.CharField(max_length=255)
    answer = models.TextField()
    category = models.CharField(max_length=100, db_index=True)
    is_active = models.BooleanField(default=True)
    updated_at = models.DateTimeField(auto_now=True)


class Article(models.Model):
    slug = models.SlugField(primary_key=True)
    headline = models.CharField(max_length=100, db_column="head")
    teaser = models.TextField()
    body = models.TextField()
    section = models.ForeignKey(Category, on_delete=models.CASCADE)
    state = models.CharField(max_length=10, choices=[("a", "A")])
    scan = models.BinaryField()

    class Meta:
        db_table = 'press"."article'


class Note(models.Model):
    name = models.CharField(max_length=100)


class Count(models.Model):
    number = models.IntegerField()


class Place(models.Model):
    name = models.CharField(max_length=50)
    note = models.TextField()


class Restaurant(Place):
    menu = models.TextField()
    is_active = models.BooleanField(default=True)


class Bar(Place):
    stools = models.IntegerField()


class Eatery(Restaurant):
    class Meta:
        proxy = True


class Letter(models.Model):
    body = models.TextField(db_column="Body Text")
    note = models.TextField()


class Tag(models.Model):
    slug = models.SlugField(unique=True)
    title = models.CharField(max_length=50)


class Person(models.Model):
    name = models.CharField(max_length=50)


class Entry(models.Model):
    question = models.CharField(max_length=255)
    answer = models.TextField()
    category = models.ForeignKey(Category, null=True, on_delete=models.SET_NULL)
    kind = models.ForeignKey(Category, related_name="+", on_delete=models.CASCADE)
    author = models.ForeignKey(Person, on_delete=models.CASCADE)
    main = models.ForeignKey(Tag, to_field="slug", related_name="+", on_delete=models.CASCADE)
    tags = models.ManyToManyField(Tag)
    related = models.ManyToManyField("self")
    topic = models.ForeignKey(Count, on_delete=models.CASCADE)


class Clash(models.Model):
    text = models.TextField()
    category = models.ForeignKey(Category, on_delete=models.CASCADE)
    other = models.CharField(max_length=9, db_column="category")
