"""A queue from its URL: what is no queue is told so, with what there is."""

from __future__ import annotations

import pytest

from unspool.errors import Misconfigured
from unspool.queues.open import OURS, is_queue, open_queue
from unspool.spools.open import OURS as SPOOLS
from unspool.spools.open import QUEUE_SCHEMES, open_spool


async def test_memory() -> None:
    """`memory:` is a queue of this process."""
    queue = await open_queue("memory:")
    await queue.put([b"one"])
    [taken] = await queue.take(limit=1, wait_ms=0)
    assert taken.payload == b"one"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memroy:", "Did you mean memory:?"),
        ("nonsense://user:secret@here/x", "No installed queue answers to nonsense:"),
        ("/orders", "no scheme"),
        ("", "no scheme"),
        ("memory://orders", "no names"),
    ],
)
async def test_no_queue(url: str, says: str) -> None:
    """The message says what there is, and never a password."""
    with pytest.raises(Misconfigured) as caught:
        await open_queue(url)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", sorted({*SPOOLS} - {"memory"}))
async def test_a_spool_is_no_queue(scheme: str) -> None:
    """Who collects from a spool is told what it is, and what to write instead."""
    with pytest.raises(Misconfigured, match="is a spool, and no queue") as caught:
        await open_queue(f"{scheme}://me:secret@h/x")
    shown = f"{scheme}://me:...@h/x"
    assert str(caught.value).endswith(f"unspool serve --spool {shown}")
    assert f"outbox='{shown}'" in str(caught.value)
    assert f"unspool move --from {shown} --to" in str(caught.value)


@pytest.mark.parametrize("scheme", sorted({*OURS} - {"memory"}))
async def test_a_queue_is_no_spool(scheme: str) -> None:
    """And who keeps in a queue is told how one is collected from, and handed over to."""
    with pytest.raises(Misconfigured, match="is a queue, and no spool") as caught:
        await open_spool(f"{scheme}://me:secret@h/?queue=a")
    shown = f"{scheme}://me:...@h/?queue=a"
    assert str(caught.value).endswith(f"--collect '{shown}'")
    assert f"queues=['{shown}']" in str(caught.value)


def test_the_spools_know_what_is_a_queue() -> None:
    """They lie below the queues, and keep the names of their schemes."""
    assert {*OURS} - {*SPOOLS} == QUEUE_SCHEMES


def test_is_queue() -> None:
    """What a client may take for a queue, by its scheme."""
    assert is_queue("memory:")
    assert not is_queue("https://relay.example")
    assert not is_queue("memory")
