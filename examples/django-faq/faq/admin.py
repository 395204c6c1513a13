"""Where the FAQs are written."""

from django.contrib import admin

from .models import FAQ


@admin.register(FAQ)
class FAQAdmin(admin.ModelAdmin):
    list_display = ["question", "category", "is_active", "updated_at"]
    list_filter = ["is_active", "category"]
    list_editable = ["is_active"]
    search_fields = ["question", "answer"]
    readonly_fields = ["created_at", "updated_at"]
    list_per_page = 50
