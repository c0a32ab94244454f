"""A queue from its URL: what is no queue is told so, with what there is."""

from __future__ import annotations

import pytest

from unspool.errors import Misconfigured
from unspool.queues.open import is_queue, open_queue


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


def test_is_queue() -> None:
    """What a client may take for a queue, by its scheme."""
    assert is_queue("memory:")
    assert not is_queue("https://relay.example")
    assert not is_queue("memory")
