"""The app: what the processes of one project have in common while they run.

    config = apps.get_app_config("unspool")
    config.keeper()        a Keeper of the settings as they are now

One keeper for each process, however many handlers and test clients there are; another one once the
settings have changed (`override_settings`), and then the first lets go of its spool.
"""

from __future__ import annotations

import threading
from typing import Any

from django.apps import AppConfig
from django.core.signals import setting_changed

from .keeper import Keeper


class UnspoolConfig(AppConfig):
    name = "unspool.middleware.django"
    label = "unspool"
    verbose_name = "unspool: the same answer again"

    def ready(self) -> None:
        from . import checks

        self._keeper: Keeper | None = None
        self._making = threading.Lock()
        checks.register()
        setting_changed.connect(self._changed, dispatch_uid="unspool")

    def keeper(self) -> Keeper:
        """Raises `ImproperlyConfigured` for settings that make no sense."""
        keeper = self._keeper
        if keeper is None:
            with self._making:
                keeper = self._keeper = self._keeper or Keeper.of_settings()
        return keeper

    def _changed(self, *, setting: str, **_: Any) -> None:
        if setting in ("UNSPOOL", "ROOT_URLCONF") and self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.portal.close()
