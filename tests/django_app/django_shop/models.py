"""What a view does that must be done once."""

from django.db import models


class Order(models.Model):
    item = models.TextField()

    class Meta:
        app_label = "django_shop"
