"""Questions and answers. vecsync follows the table: whatever writes to it is searchable a moment later."""

from django.db import models
from django.urls import reverse
from django.utils import timezone


class FAQ(models.Model):
    question = models.CharField(max_length=255)
    answer = models.TextField()
    category = models.CharField(max_length=100)
    is_active = models.BooleanField("published", default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "FAQ"
        verbose_name_plural = "FAQs"
        ordering = ["category", "question"]

    def __str__(self) -> str:
        return self.question

    def get_absolute_url(self) -> str:
        return reverse("entry", kwargs={"pk": self.pk})
