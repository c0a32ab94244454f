"""The express road: what is usual, without a coroutine, a task or a future for each request.

    express.begin(request, caller, done)     True: `done` gets the answer; False: nothing was begun

Three kinds of request take it, by the same decisions and in the same order as on the relay's own
road, each step told of the one before in the middle of it:

    Plain     asks for nothing, while all is well     attempt → its answer, if that stands
    Keyed     says its name, and nothing else         find → replay, or attempt → record → answer
    Saved     may not be tried, named or not          accept → 202, if it was new

Whatever turns out otherwise the relay takes over, at the step that it has come to. There is no
policy here: what stands, what is recalled and what is admitted is said by the tables in core.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from .answers import by_age, replayed, retention, with_fields
from .clock import Clock
from .core.fields import onward, ordinary, values
from .core.idempotency import Do, read_key, recall, worth_remembering
from .core.kinds import Kinds, name_of
from .core.lane import Lane
from .core.lifecycle import State
from .core.message import (
    SAFE_METHODS,
    Answer,
    Field,
    Instant,
    Request,
    Response,
    fingerprint,
    named,
    scoped,
)
from .core.outcome import STANDS
from .core.prefer import NONE
from .custody import Custody
from .errors import Corrupt, NotDone, Refused, Unavailable
from .ingress.protocol import Caller
from .passage import Options, Passage, forwarded, plain, untried
from .problems import PREFIX, problem
from .saving import Saving, came_meanwhile, unstored
from .spools.protocol import Acceptance, Entry, Mismatch, New
from .told import Told
from .transports.protocol import Begun
from .tries import Tries, Turn

_OURS: Final = PREFIX.encode()
FIRST: Final[Field] = (b"Unspool-Attempt", b"1")

_Done = Callable[[Response], None]
_Road = Coroutine[Any, Any, Response]


class Other(Protocol):
    """The relay's own road, from some step on, as far as this knows it."""

    def looked(self, passage: Passage, turn: Turn, /) -> _Road: ...
    def passed(self, passage: Passage, /) -> _Road: ...
    def judged(self, passage: Passage, answer: Answer, /) -> _Road: ...
    def take_over(self, road: _Road, done: _Done, /) -> None: ...
    def complaint(self, error: Exception, /) -> Response: ...


class Express:
    def __init__(
        self,
        *,
        other: Other,
        options: Options,
        secret: bytes,
        custody: Custody,
        saving: Saving,
        prompt: Callable[..., Begun | None] | None,
        lane: Lane,
        clock: Clock,
        tries: Tries,
        via: Field,
    ) -> None:
        self.other: Final = other
        self.options: Final = options
        self.custody: Final = custody
        self.saving: Final = saving
        self.prompt: Final = prompt
        self.lane: Final = lane
        self.clock: Final = clock
        self.retention: Final = retention(options.policy.keeping)
        self._secret = secret
        self._scopes = Kinds(lambda name: name in options.scope_fields).__getitem__
        self._tries = tries
        self._via = via
        self._anybody = scoped(
            secret, scope=[b""] * len(options.scope_fields), destination=options.destination
        )

    def begin(self, request: Request, caller: Caller, done: _Done) -> bool:
        """Steps 1 and 3 of the road. See ingress.protocol.Express."""
        lane = self.lane
        calm = lane.calm
        if self.prompt is None or request.target.startswith(_OURS):
            return False
        now = self.clock.now()
        if not calm and lane.is_open(now):
            return False
        found = ordinary(request.fields)
        if found is not None:
            fields, host, key = found
        else:
            head = onward(request.fields)
            if head.speaks:
                return False
            fields, host, key = head.fields, head.host or b"", None
        fields.append(self._via)
        if self.options.forwarded:
            fields.append(forwarded(caller, host))
        safe = request.method in SAFE_METHODS
        if key is not None:
            return not safe and self._begin_keyed(request, fields, key, done, now, calm)
        if not calm:
            if safe:
                return False
            onwards = Request(request.method, request.target, fields, request.body)
            return self.save(plain(onwards, self.options, began_at=now), done, now)
        fields.append(FIRST)
        onwards = Request(request.method, request.target, fields, request.body)
        repeat = self.options.repeats(request.method)
        return self.prompt(onwards, Plain(self, onwards, done, now), repeat=repeat) is not None

    def _begin_keyed(
        self,
        request: Request,
        fields: list[Field],
        key: bytes,
        done: _Done,
        now: Instant,
        calm: bool,
    ) -> bool:
        options = self.options
        name = read_key((key,), chars_max=options.key_max_chars)
        if options.claims or type(name) is not str:
            return False
        scope = self._anybody
        # As they came: a field that ends here may still tell callers apart (I10).
        if any(map(self._scopes, map(name_of, request.fields))):
            parts = [b"\0".join(values(request.fields, field)) for field in options.scope_fields]
            scope = scoped(self._secret, scope=parts, destination=options.destination)
        known_as = named(scope, name)
        onwards = Request(request.method, request.target, fields, request.body)
        print_ = fingerprint(onwards)
        recent = self.custody.recent.get(known_as)
        if recent is not None and recall(recent, fingerprint=print_, now=now).do is Do.REPLAY:
            done(replayed(recent, self.retention))  # it is over (I3): nobody else is trying it
            return True
        turn = self._tries.begin_now(known_as, print_)
        if turn is None:
            return False
        passage = Passage(
            onwards, NONE, now, True, options.lifetime_ms,
            name=name, key=known_as, fingerprint=print_, let_go=turn.ends,
        )  # fmt: skip
        keyed = Keyed(self, passage, turn, done)
        if recent is None and not calm and keyed.saves(now):
            return True
        told = Told(keyed.found, self.other.complaint, keyed.end)
        if recent is not None:
            told.set_result(recent)
            return True
        try:
            self.custody.find_for(told, known_as)
        except Refused:
            turn.ends()
            return False
        return True

    def save(
        self,
        passage: Passage,
        done: _Done,
        now: Instant,
        otherwise: Callable[[Exception | None], None] | None = None,
    ) -> bool:
        """Steps 6 and 7, for what was not tried. False: the other road has something to say.

        `otherwise` goes on where the spool did not take it as new: known, or in this trouble.
        """
        try:
            if self.custody.admit(now) is not None:
                return False
            entry = self.saving.waiting(passage, None, now)
        except Exception as error:  # a mistake is an answer, too: a key is not kept by it
            done(self.other.complaint(error))
            return True
        saved = Saved(self, passage, entry, done, otherwise)
        try:
            self.custody.accept_for(Told(saved.took, saved.failed, done), entry)
        except Refused:
            return False
        return True


class Plain:
    """A request that asks for nothing, on its way."""

    __slots__ = ("_began_at", "_done", "_express", "_sent")

    def __init__(self, express: Express, sent: Request, done: _Done, now: Instant) -> None:
        self._express = express
        self._sent = sent
        self._began_at = now
        self._done = done

    def __call__(self, answer: Answer) -> None:
        express = self._express
        if type(answer) is Response and STANDS[answer.status] and express.lane.calm:
            self._done(answer)
            return
        sent = self._sent
        onwards = Request(sent.method, sent.target, sent.fields[:-1], sent.body)
        passage = plain(onwards, express.options, began_at=self._began_at)
        passage.tried = True
        express.other.take_over(express.other.judged(passage, answer), self._done)


class Keyed:
    """A request that says its name, on its way."""

    __slots__ = ("_done", "_express", "_passage", "_turn")

    def __init__(self, express: Express, passage: Passage, turn: Turn, done: _Done) -> None:
        self._express = express
        self._passage = passage
        self._turn = turn
        self._done = done

    def end(self, response: Response) -> None:
        self._turn.ends()
        self._done(with_fields(response, self._express.retention))

    def _over(self, road: _Road) -> None:
        self._express.other.take_over(road, self.end)

    def saves(self, now: Instant) -> bool:
        """Steps 2, 6 and 7 in one, where it may not be tried: the spool takes a key that is new
        and no other (I5). False: nothing was begun."""
        passage, express = self._passage, self._express
        keeping = express.options.policy.keeping
        if by_age(passage.name, now=now, keeping=keeping) is not None:
            return False  # a refusal, for a key that nobody knows
        if express.custody.chain is not None:
            return False  # who takes it may not be who knows it
        return express.save(passage, self.end, now, self._not_new)

    def _look(self) -> None:
        self._over(self._express.other.looked(self._passage, self._turn))

    def _not_new(self, error: Exception | None) -> None:
        """Step 2, after all."""
        if not isinstance(error, Unavailable) or isinstance(error, NotDone):
            self._look()
            return
        # The spool may have it, or have it yet: then it has the receipt, and else nobody tries it
        # beside that (I5), and no trouble with the look says that it has not.
        express = self._express
        doubt = express.saving.refused(self._passage, untried(express.lane.last_trouble), error)
        told = Told(
            lambda entry: doubt if entry is None else self.found(entry),
            lambda error: doubt if isinstance(error, Refused) else express.other.complaint(error),
            self.end,
        )
        try:
            express.custody.find_for(told, self._passage.key)
        except Refused:
            self.end(doubt)

    def found(self, entry: Entry | None) -> Response | None:
        """Step 2: is the key known?"""
        passage, express = self._passage, self._express
        if entry is None:
            began_at, keeping = passage.began_at, express.options.policy.keeping
            if (refusal := by_age(passage.name, now=began_at, keeping=keeping)) is not None:
                return refusal
            self._turn.tries()
            self._go()
            return None
        assert passage.fingerprint is not None
        what = recall(entry, fingerprint=passage.fingerprint, now=express.clock.now())
        recent = express.custody.recent
        if what.do is Do.RUN:
            recent.drop(passage.key)
        elif entry.state is State.DELIVERED and recent.get(passage.key) is None:
            recent.keep(entry)
        if what.do is Do.REPLAY:
            return replayed(entry)
        if what.do is Do.ATTACH:
            return express.saving.promise(passage, entry)
        if what.do is Do.REFUSE:
            return problem(what.problem, what.detail)
        self._look()
        return None

    def _go(self) -> None:
        """Steps 3 and 4."""
        passage, express = self._passage, self._express
        if express.lane.calm:
            assert express.prompt is not None
            sent = passage.request
            onwards = Request(sent.method, sent.target, [*sent.fields, FIRST], sent.body)
            passage.tried = True
            if express.prompt(onwards, self.answered, repeat=True) is not None:
                return
            passage.tried = False
        else:
            now = express.clock.now()
            if not express.lane.is_open(now) and express.save(passage, self.end, now):
                return
        self._over(express.other.passed(passage))

    def answered(self, answer: Answer) -> None:
        """Step 5: what is it? And nobody sees it before it is recorded (I6)."""
        passage, express = self._passage, self._express
        if (
            type(answer) is not Response
            or answer.rest is not None
            or not STANDS[answer.status]
            or not express.lane.calm
        ):
            self._over(express.other.judged(passage, answer))
            return
        if not worth_remembering(answer):
            self.end(answer)
            return
        entry = express.saving.answered(passage, answer, express.clock.now())
        custody = express.custody

        def recorded(acceptance: Acceptance) -> Response | None:
            custody.took(entry, acceptance)
            if came_meanwhile(acceptance):
                self._over(express.saving.record(passage, answer))
                return None
            return answer if isinstance(acceptance, New) else unstored(answer)

        def failed(error: Exception) -> Response:
            if not isinstance(error, Refused):
                return express.other.complaint(error)
            custody.failed(error, express.clock.now())
            return unstored(answer)

        try:
            custody.accept_for(Told(recorded, failed, self.end), entry)
        except Refused as error:
            self.end(failed(error))


class Saved:
    """A request that is being saved."""

    __slots__ = ("_done", "_entry", "_express", "_otherwise", "_passage")

    def __init__(
        self,
        express: Express,
        passage: Passage,
        entry: Entry,
        done: _Done,
        otherwise: Callable[[Exception | None], None] | None,
    ) -> None:
        self._otherwise = otherwise
        self._express = express
        self._passage = passage
        self._entry = entry
        self._done = done

    def took(self, acceptance: Acceptance) -> Response | None:
        express, passage = self._express, self._passage
        express.custody.took(self._entry, acceptance)
        failure = untried(express.lane.last_trouble)
        if isinstance(acceptance, New):
            return express.saving.promise(passage, acceptance.entry, failure)
        if self._otherwise is not None:
            return self._otherwise(None)
        entry = None if isinstance(acceptance, Mismatch) else acceptance.entry
        express.other.take_over(express.saving.taken(passage, entry, failure), self._done)
        return None

    def failed(self, error: Exception) -> Response | None:
        express = self._express
        if isinstance(error, Refused):
            express.custody.failed(error, express.clock.now())
        if self._otherwise is not None and isinstance(error, Refused | Corrupt):
            return self._otherwise(error)
        if not isinstance(error, Refused):
            return express.other.complaint(error)
        return express.saving.refused(self._passage, untried(express.lane.last_trouble), error)
