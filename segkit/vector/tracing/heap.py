"""A binary min-heap for compiled functions: three arrays with size, order among equal sizes, and number."""

from __future__ import annotations

from segkit.vector.tracing.jit import compiled


@compiled
def push(heap, count, size, order, number):
    """Add an item to a heap with `count` items; return the new count."""
    sizes, orders, numbers = heap
    at = count
    while at > 0:
        above = (at - 1) // 2
        if sizes[above] < size or (sizes[above] == size and orders[above] <= order):
            break
        sizes[at], orders[at], numbers[at] = sizes[above], orders[above], numbers[above]
        at = above
    sizes[at], orders[at], numbers[at] = size, order, number
    return count + 1


@compiled
def pop(heap, count):
    """Remove the first item of a heap with `count` items; return the new count."""
    sizes, orders, numbers = heap
    count -= 1
    size, order, number = sizes[count], orders[count], numbers[count]
    at = 0
    while True:
        below = 2 * at + 1
        if below >= count:
            break
        other = below + 1
        if other < count and (
            sizes[other] < sizes[below] or (sizes[other] == sizes[below] and orders[other] < orders[below])
        ):
            below = other
        if size < sizes[below] or (size == sizes[below] and order <= orders[below]):
            break
        sizes[at], orders[at], numbers[at] = sizes[below], orders[below], numbers[below]
        at = below
    sizes[at], orders[at], numbers[at] = size, order, number
    return count
