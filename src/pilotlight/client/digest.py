"""The digest of a graph of labelled nodes: equal for graphs that unfold alike, whatever is shared in them.

Nodes that reach one another (a function that names itself, a list in itself) get their digests together; all others
from what they point to. Nothing here recurses, so graphs may be deep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

Child = bytes | int
"""A digest that is known, or a node's number."""


@dataclass(slots=True)
class Node:
    """`label`: what it is in itself. ordered: whether the order of its children matters."""

    label: bytes
    children: list[Child] = field(default_factory=list[Child])
    ordered: bool = True


def hashed(kind: str, parts: Iterable[bytes] = ()) -> bytes:
    """A digest of parts in their order, which no other division into parts has."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def digest_of(nodes: Sequence[Node], root: Child) -> bytes:
    """The digest of `root` in this graph."""
    known: dict[int, bytes] = {}
    for component in _components(nodes):
        known |= _settled(nodes, component, known)
    return root if isinstance(root, bytes) else known[root]


def _read(node: Node, known: dict[int, bytes], ours: dict[int, bytes]) -> bytes:
    children = [
        child if isinstance(child, bytes) else ours[child] if child in ours else known[child] for child in node.children
    ]
    return hashed("node", [node.label, *(children if node.ordered else sorted(children))])


def _settled(nodes: Sequence[Node], component: list[int], known: dict[int, bytes]) -> dict[int, bytes]:
    """Digests of nodes that reach one another: told apart by what they look like a step further in each round, until a
    round tells no more apart. Then the classes with what each points to describe the component in full."""
    if len(component) == 1 and component[0] not in nodes[component[0]].children:
        return {component[0]: _read(nodes[component[0]], known, {})}
    looks = {number: hashed("cycle", [nodes[number].label]) for number in component}
    while True:
        further = {number: _read(nodes[number], known, looks) for number in component}
        if len(set(further.values())) == len(set(looks.values())):
            break
        looks = further
    whole = hashed("component", sorted({looks[number] + further[number] for number in component}))
    return {number: hashed("member", [looks[number], whole]) for number in component}


def _components(nodes: Sequence[Node]) -> Iterator[list[int]]:
    """Groups of nodes that reach one another, each after all that it points to (Tarjan's algorithm)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    stacked: set[int] = set()
    for start in range(len(nodes)):
        if start in order:
            continue
        path = [(start, iter(nodes[start].children))]
        while path:
            number, children = path[-1]
            if number not in order:
                order[number] = low[number] = len(order)
                stack.append(number)
                stacked.add(number)
            for child in children:
                if isinstance(child, bytes):
                    continue
                if child not in order:
                    path.append((child, iter(nodes[child].children)))
                    break
                if child in stacked:
                    low[number] = min(low[number], order[child])
            else:
                path.pop()
                if path:
                    above = path[-1][0]
                    low[above] = min(low[above], low[number])
                if low[number] == order[number]:
                    cut = stack.index(number) if stack[-1] != number else len(stack) - 1
                    component = stack[cut:]
                    del stack[cut:]
                    stacked.difference_update(component)
                    yield component
