"""Contexts as a user writes them: `@context` around a function that builds a state.

`LLM`, the other kind of context, is in `llm.py`.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from pilotlight import wire
from pilotlight.client import pickling
from pilotlight.client.identity import Identity, identify

P = ParamSpec("P")
S = TypeVar("S")


class Context(Generic[S]):
    """A state that workers build once and keep: what a `@context` function returns when it is called here.

    Nothing is built in this process. `id` tells contexts apart: equal ids share live states from job to job, in a pool
    that stays also those of other processes. unstable: types of arguments that may look different in each process.
    """

    def __init__(self, described: wire.Context, unstable: Sequence[str] = ()) -> None:
        self.wire = described
        self.unstable = list(unstable)

    @property
    def id(self) -> str:
        """Digest of what changes the state."""
        return self.wire.id

    @property
    def name(self) -> str:
        """What displays call it."""
        return self.wire.name

    def __repr__(self) -> str:
        return f"Context({self.name!r}, id={self.id!r})"


STATELESS: Context[None] = Context(wire.Context(runtime="python", name="python", identity="stateless"))
"""The context of functions that need no state."""


@overload
def context(build: Callable[P, S], /) -> Callable[P, Context[S]]: ...


@overload
def context(
    *, name: str | None = None, version: str | None = None, memory_bytes: int = 0, concurrency: int | None = None
) -> Callable[[Callable[P, S]], Callable[P, Context[S]]]: ...


def context(
    build: Callable[P, S] | None = None,
    /,
    *,
    name: str | None = None,
    version: str | None = None,
    memory_bytes: int = 0,
    concurrency: int | None = None,
) -> Callable[P, Context[S]] | Callable[[Callable[P, S]], Callable[P, Context[S]]]:
    """Make a function that builds a state (loads a model, opens an index) into a maker of contexts.

    Called here, it returns a `Context` at once; the function itself runs in each replica, once, with the same
    arguments, and what it returns is the first argument of the functions mapped over rows. If the state has a
    `close()` (or is a context manager), it is closed at the end.

    A context is known by its arguments and the function: its code, what it closes over, and those globals that it names
    and that are not of an installed package. Give `version` (and perhaps `name`) to say instead when a state is another
    one: then the function does not count.
    memory_bytes: a hint of what a live state needs. concurrency: async calls in flight at once in a replica.
    """
    if build is None:
        return lambda function: context_maker(function, name, version, memory_bytes, concurrency)
    return context_maker(build, name, version, memory_bytes, concurrency)


def context_maker(
    build: Callable[P, S], name: str | None, version: str | None, memory_bytes: int, concurrency: int | None
) -> Callable[P, Context[S]]:
    """What `context` returns, with every option given."""
    title = name or getattr(build, "__name__", type(build).__name__)

    @functools.wraps(build)
    def make(*args: P.args, **kwargs: P.kwargs) -> Context[S]:
        arguments = identify((args, sorted(kwargs.items())))
        built = identify(build) if version is None else Identity(f"{title}@{version}")
        return Context(
            wire.Context(
                runtime="python",
                name=title,
                identity=hashlib.sha256(f"{built.digest}\0{arguments.digest}".encode()).hexdigest(),
                options={} if concurrency is None else {"concurrency": concurrency},
                load=pickling.dumps((build, args, kwargs), f"the context {title}"),
                memory_bytes=memory_bytes,
            ),
            unstable=[*built.unstable, *arguments.unstable],
        )

    return make


def warn_if_unstable(given: Context[Any]) -> None:
    """Say that a pool that stays may take this for another context when the next process asks for it."""
    if given.unstable:
        text = (
            f"context {given.name} holds {', '.join(given.unstable)}, which may look different in every process, so "
            "that the pool builds it anew for each; build it inside of the function from plain arguments"
        )
        warnings.warn(text, stacklevel=3)
