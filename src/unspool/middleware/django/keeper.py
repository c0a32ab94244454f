"""The keeper: the settings of a project, read, and what is made of them.

    keeper = Keeper.of_settings()       from UNSPOOL; raises ImproperlyConfigured
    keeper.rules, keeper.using          how keys are treated; the database alias for atomic views
    keeper.gate(route)                  the gate, with a route's own options
    keeper.principal(request)           who is asking, or why nothing is run
    keeper.portal                       where the memory lives

UNSPOOL is a dict of `spool` and `scope`, both required, `using` (an alias of DATABASES, "default"
unless given) and the options that all the middlewares have (`middleware.options`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from ...core.message import Response
from ...errors import UnspoolError
from ...spools.protocol import Spool
from ..gate import Gate, Principal, Rules
from ..opening import Opening
from ..options import KEEPING, RULES, TENURE, Options, read
from ..portal import Portal
from ..principal import Steady, checked_scope
from ..wsgi import principal_of
from .route import Route, nearest

OURS: Final = ("spool", "scope", "using")
"""What UNSPOOL has besides the options of all middlewares."""
KNOWN: Final = frozenset({*OURS, *RULES, *TENURE, *KEEPING, "survives"})


class Keeper:
    def __init__(
        self,
        *,
        spool: str | Spool,
        scope: Callable[[Any], Any],
        project: str,
        using: str = "default",
        **options: Any,
    ) -> None:
        """`project` is its package: it tells this one from others that use the spool, where none of
        them was given a name. Raises `Misconfigured`."""
        self.using: Final = using
        self._options: Final = options
        self.rules, tenure, survives = read(cast(Options, options))
        checked_scope(scope)
        self.opening: Final = Opening(
            spool,
            name=self.rules.name,
            owner="" if "name" in options else project,
            tenure=tenure,
            survives=survives,
        )
        self.portal: Final = Portal("unspool-django", on_close=self.opening.aclose)
        self._scope_of: Final = async_to_sync(scope) if iscoroutinefunction(scope) else scope
        self._steady: Final = Steady()
        self._gates: Final[dict[Route | None, tuple[Rules, Gate]]] = {}

    @classmethod
    def of_settings(cls) -> Keeper:
        given = read_settings()
        try:
            project = str(getattr(settings, "ROOT_URLCONF", "")).partition(".")[0]
            return cls(project=project, **given)
        except (UnspoolError, TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"UNSPOOL: {error}") from error

    @property
    def answer_max_bytes(self) -> int:
        return self.opening.tenure.keeping.answer_max_bytes

    def principal(self, request: Any) -> Principal | Response:
        """Blocks, where the scope function does."""
        return principal_of(self._scope_of, request, self._steady)

    def gate(self, route: Route | None) -> tuple[Rules, Gate]:
        """The rules for a route, and the gate that keeps them."""
        found = self._gates.get(route)
        if found is None:
            rules = self.rules
            if route is not None and route.options:
                merged = {**self._options, **route.options}
                try:
                    rules, _, _ = read(cast(Options, merged))
                except (UnspoolError, TypeError, ValueError) as error:
                    raise ImproperlyConfigured(f"@idempotent: {error}") from error
            found = self._gates[route] = (rules, Gate(rules=rules, opening=self.opening))
        return found


def read_settings() -> dict[str, Any]:
    """UNSPOOL with its scope found. Raises `ImproperlyConfigured`."""
    given = getattr(settings, "UNSPOOL", None)
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(
            "UNSPOOL is missing. Say where keys are remembered, and who is asking: UNSPOOL ="
            ' {"spool": "sqlite:///idem.db", "scope": "unspool.middleware.django.by_user"}'
        )
    for name in given:
        if name not in KNOWN:
            near = nearest(str(name), KNOWN)
            raise ImproperlyConfigured(f"UNSPOOL has no option {name!r}. {near}")
    if not given.get("spool"):
        raise ImproperlyConfigured(
            'UNSPOOL["spool"] is missing: where keys are remembered, such as "sqlite:///idem.db".'
        )
    scope = given.get("scope")
    if scope is None:
        raise ImproperlyConfigured(
            'UNSPOOL["scope"] is missing: who is asking. It has no default, for with a wrong one'
            " callers get each other's answers. For users who sign in with django.contrib.auth:"
            ' "scope": "unspool.middleware.django.by_user"'
        )
    if isinstance(scope, str):
        try:
            scope = import_string(scope)
        except ImportError as error:
            raise ImproperlyConfigured(f'UNSPOOL["scope"] cannot be found: {error}') from error
    return {**given, "scope": scope}
