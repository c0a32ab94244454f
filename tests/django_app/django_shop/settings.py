"""SHOP_FOLDER has the database, the spool, and what happened outside."""

import os
from pathlib import Path

FOLDER = Path(os.environ["SHOP_FOLDER"])
SECRET_KEY = "of a test"
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "django_shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "unspool.middleware.django",
    "django_shop",
]
MIDDLEWARE = [
    "django.middleware.common.CommonMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "unspool.middleware.django.middleware.IdempotencyMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django_shop.crash.crash_middleware",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / "shop.db",
        "OPTIONS": {"timeout": 20},
        "TEST": {"NAME": FOLDER / "test.db"},
    }
}
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"order": "{{ n }} x"})]},
    }
]
UNSPOOL = {
    "spool": f"sqlite:///{FOLDER}/idem.db",
    "scope": os.environ.get("SHOP_SCOPE", "unspool.middleware.django.by_user"),
    "survives": "process",
    "lease_ms": int(os.environ.get("SHOP_LEASE_MS", "30000")),
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
