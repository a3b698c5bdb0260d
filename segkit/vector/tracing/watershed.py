"""Divide an object into parts, in a window with a margin of one pixel: at its narrow places, or around seeds.

Windows are flat arrays of `rows * columns` pixels. Parts are numbered from 1 and are connected by sides of pixels.
"""

from __future__ import annotations

import numpy as np

from segkit.vector.tracing.heap import pop, push
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.union_find import PARENT, root

# Parts that touch form a planar graph, for which six colours are always enough (see `colour_parts`).
COLOURS = 6
# Farther pixels have no weight in `smooth`.
_SMOOTH_RADIUS = 3


@compiled
def fill(values, start, part, number, stack):
    """Give a number to the pixels without one that have the value of `start` and are connected with it."""
    columns = part.shape[1]
    flat = part.ravel()
    value = values[start]
    stack[0], depth, flat[start] = start, 1, number
    while depth:
        depth -= 1
        p = stack[depth]
        for step in (-columns, -1, 1, columns):
            q = p + step
            if values[q] == value and flat[q] == 0:
                flat[q] = number
                stack[depth] = q
                depth += 1


@compiled
def measure_distance(inside, height, width):
    """Return the distance of each pixel inside to the nearest one that is not, between centres.

    Parameters
    ----------
    inside
        bool (rows, columns), false in the margin.
    height, width
        Sides of a pixel.
    """
    rows, columns = inside.shape
    distance = np.zeros((rows, columns))
    for r in range(1, rows):
        for c in range(columns):
            if inside[r, c]:
                distance[r, c] = distance[r - 1, c] + height
    for r in range(rows - 2, 0, -1):
        for c in range(columns):
            if inside[r, c]:
                distance[r, c] = min(distance[r, c], distance[r + 1, c] + height)
    for r in range(rows):
        vertical = distance[r].copy()
        for c in range(columns):
            nearest, k = vertical[c], 1
            while k * width < nearest:  # never beyond the margin, where it is at most k * width
                closest = min(vertical[c - k], vertical[c + k])
                nearest = min(nearest, np.sqrt((k * width) ** 2 + closest**2))
                k += 1
            distance[r, c] = nearest
    return distance


@compiled
def smooth(values, inside):
    """Return 1 plus the mean of the values around each pixel inside, with Gaussian weights (deviation 1 pixel).

    Only pixels inside that have a value count, so that neither the outline nor gaps in the data lower the result.

    Parameters
    ----------
    values
        float64 (rows, columns) from 0 to 1; NaN where there is none.
    inside
        bool (rows, columns), false in the margin.

    Returns
    -------
    float64 (rows, columns): 0 where not inside; 2 where there is no value near, so that nothing falls there.
    """
    weight = np.exp(-0.5 * np.arange(_SMOOTH_RADIUS + 1.0) ** 2)
    known = inside & (values == values)
    total, share = np.where(known, values, 0.0), known.astype(np.float64)
    for _ in range(2):
        total, share = _weigh_rows(total, weight).T.copy(), _weigh_rows(share, weight).T.copy()
    return np.where(inside, np.where(share > 0, 1 + total / share, 2.0), 0.0)


@compiled
def _weigh_rows(values, weight):
    result = values * weight[0]
    for k in range(1, min(weight.size, values.shape[1])):
        result[:, k:] += weight[k] * values[:, :-k]
        result[:, :-k] += weight[k] * values[:, k:]
    return result


@compiled
def divide(height, depth):
    """Divide the pixels of positive height into one part for each maximum of at least this depth.

    The depth of a maximum is how far one must descend from it on the way to a higher one (its dynamics; Grimaud 1992,
    Proc. SPIE 1769). Pixels are added from the highest one downwards. Where parts meet, the lower one is kept if its
    peak is at least `depth` above that place; otherwise they become one part.

    Returns
    -------
    int32 (rows, columns): numbers of parts, of which some are not used; 0 where the height is 0.
    """
    columns = height.shape[1]
    level = height.ravel()
    inside = np.flatnonzero(level)
    part = np.zeros(level.size, dtype=np.int32)
    basin, peak = np.zeros((inside.size + 1, PARENT + 1), dtype=np.int32), np.zeros(inside.size + 1)
    count = 0
    for p in inside[np.argsort(-level[inside], kind="mergesort")]:
        own, highest = 0, -1.0
        for step in (-columns, -1, 1, columns):
            q = p + step
            if part[q] and level[q] > highest:
                own, highest = root(basin, part[q]), level[q]
        if own == 0:
            count += 1
            own = basin[count, PARENT] = count
            peak[own] = level[p]
        for step in (-columns, -1, 1, columns):
            if part[p + step] == 0:
                continue
            other = root(basin, part[p + step])
            if other != own and min(peak[other], peak[own]) - level[p] < depth:
                basin[other, PARENT] = own
                peak[own] = max(peak[own], peak[other])
        part[p] = own
    for p in inside:
        part[p] = root(basin, part[p])
    return part.reshape(height.shape)


@compiled
def grow(part, free, height, width):
    """Add free pixels to the nearest part to which they are connected, by the distance to the seed's nearest pixel.

    Parameters
    ----------
    part
        int32 (rows, columns): seeds; changed.
    free
        bool (rows, columns): pixels that belong to no part yet.
    """
    columns = part.shape[1]
    flat, unknown = part.ravel(), free.ravel()
    size = 4 * np.count_nonzero(unknown) + 1
    heap = np.empty(size), np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    count = 0
    for p in range(flat.size):
        if flat[p]:
            count = _push_free(heap, count, flat, unknown, p, p, columns, height, width)
    while count > 0:
        seed, p = heap[1][0], heap[2][0]
        count = pop(heap, count)
        if flat[p] == 0:
            flat[p] = flat[seed]
            count = _push_free(heap, count, flat, unknown, p, seed, columns, height, width)


@compiled
def _push_free(heap, count, flat, unknown, p, seed, columns, height, width):
    for step in (-columns, -1, 1, columns):
        q = p + step
        if unknown[q] and flat[q] == 0:
            dy, dx = (q // columns - seed // columns) * height, (q % columns - seed % columns) * width
            count = push(heap, count, dy * dy + dx * dx, seed, q)
    return count


@compiled
def number_parts(part):
    """Renumber parts from 1 in the order of their first pixels; return their number."""
    flat = part.ravel()
    new = np.zeros(flat.max() + 1, dtype=np.int32)
    count = 0
    for p in range(flat.size):
        if flat[p]:
            if new[flat[p]] == 0:
                count += 1
                new[flat[p]] = count
            flat[p] = new[flat[p]]
    return count


@compiled
def find_contacts(part):
    """Return the pixel sides between two parts, int32 (sides, 2)."""
    rows, columns = part.shape
    contacts = np.empty((2 * part.size, 2), dtype=np.int32)
    n = 0
    for r in range(rows - 1):
        for c in range(columns - 1):
            one = part[r, c]
            for other in (part[r, c + 1], part[r + 1, c]):
                if one and other and one != other:
                    contacts[n, 0], contacts[n, 1] = one, other
                    n += 1
    return contacts[:n]


@compiled
def merge_small_parts(part, size, min_size):
    """Merge parts below `min_size`, the smallest first, into the neighbour with the longest common border.

    Parameters
    ----------
    part
        int32 (rows, columns); changed. Some numbers are no longer used afterwards.
    size
        float64 (parts + 1,): size of each part; changed.
    """
    contacts = find_contacts(part)
    merged = np.arange(size.size).astype(np.int32).reshape(-1, 1)
    border = np.zeros(size.size, dtype=np.int64)
    while True:
        small = 0
        for k in range(1, size.size):
            if merged[k, PARENT] == k and size[k] < min_size and (small == 0 or size[k] < size[small]):
                small = k
        if small == 0:
            break
        border[:] = 0
        for k in range(len(contacts)):
            a, b = root(merged, contacts[k, 0]), root(merged, contacts[k, 1])
            if a != b and (a == small or b == small):
                border[b if a == small else a] += 1
        best = int(np.argmax(border))
        if border[best] == 0:
            break  # it is the whole object
        merged[small, PARENT] = best
        size[best] += size[small]
    flat = part.ravel()
    for p in range(flat.size):
        if flat[p]:
            flat[p] = root(merged, flat[p])


@compiled
def colour_parts(part, count):
    """Return colours below `COLOURS` that differ between parts in contact, int64 (parts + 1,).

    A planar graph has a vertex with at most five neighbours. It is taken away, and coloured after all others.
    """
    n = count + 1
    contacts = find_contacts(part).astype(np.int64)
    keys = np.unique(np.concatenate((contacts[:, 0] * n + contacts[:, 1], contacts[:, 1] * n + contacts[:, 0])))
    start = np.searchsorted(keys, np.arange(n + 1) * n)
    left = start[1:] - start[:-1]
    order, queued, last = np.empty(n, dtype=np.int64), np.zeros(n, dtype=np.bool_), 0
    for k in range(n):
        if left[k] < COLOURS:
            order[last], queued[k] = k, True
            last += 1
    for at in range(n):
        for key in keys[start[order[at]] : start[order[at] + 1]]:
            k = key % n
            left[k] -= 1
            if left[k] < COLOURS and not queued[k]:
                order[last], queued[k] = k, True
                last += 1
    colour = np.full(n, -1, dtype=np.int64)
    for at in range(n - 1, -1, -1):
        used = 0
        for key in keys[start[order[at]] : start[order[at] + 1]]:
            if colour[key % n] >= 0:
                used |= 1 << colour[key % n]
        colour[order[at]] = 0
        while used >> colour[order[at]] & 1:
            colour[order[at]] += 1
    return colour
