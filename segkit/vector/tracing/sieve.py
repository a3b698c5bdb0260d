"""Sieve: small regions and small holes of a map become part of their neighbours, before borders are traced.

Rows go in and come out later, as soon as all that they hold is known to stay, with other kinds where something was too
small. So memory holds the rows that small regions reach into, and not the map; and the result does not depend on how
the map is cut into strips.

**Small regions** take the kind with which they share the longest border, the smallest one first. What comes first, in a
map that lies in memory as a whole, matters to a region only where it happens to a smaller neighbour. So a region can be
decided as soon as it is closed and all its neighbours are larger so far: these come later, and until then none of its
borders can change.

**Small holes** are groups of small regions that one region alone cuts off from all else, or that lie within a single
kind of large ones. Where a hole lies in another one that is small, the other one is filled.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segkit.vector.tracing.heap import pop, push
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.runs import Runs
from segkit.vector.tracing.union_find import PARENT, root

_OUTSIDE = -1
_SETTLED = 2**62

# A region, int32: the one that it is part of; its kind; the last row that it was seen in; the first and last of its
# contacts; whether it touches what has no data; the kind that it gets, -1 where it stays.
_KIND, _LAST, _FIRST, _FINAL, _EDGE, _BECOMES = range(PARENT + 1, 7)
# The same as int64: its size; where it starts in raster order; the size of the hole that it is filled with.
_SIZE, _START, _HOLE = range(3)
# A contact, int32: the region on the other side, and the next contact in the list; int64: its length.
_OTHER, _NEXT = range(2)


class _Tables(NamedTuple):
    """Regions and contacts; `used` is how many there are of each."""

    region: NDArray[np.int32]
    size: NDArray[np.int64]
    contact: NDArray[np.int32]
    length: NDArray[np.int64]
    used: NDArray[np.int64]


class Sieve:
    """Takes rows and gives them back without what is too small.

    Parameters
    ----------
    width
        Pixels in a row.
    least
        What regions, or holes, must at least measure to stay; in the unit of `sizes`.
    sides
        Lengths of a pixel's upper and left side in any unit, by which borders are compared.
    holes
        Whether holes are filled; else small regions are merged.
    rows
        How many rows a hole of less than `least` may at most reach over.
    """

    def __init__(self, width: int, least: int, sides: tuple[int, int], *, holes: bool = False, rows: int = 0) -> None:
        self._width, self._least, self._sides, self._holes = width, least, sides, holes
        # After twice as many, also what is around a hole is closed, or larger than that.
        self._delay = 2 * rows + 2
        self._tables = _empty(0, 0)
        # The rows that are held back, and one before them, which at first is no data.
        outside = np.full(1, _OUTSIDE, dtype=np.int32)
        self._held = Runs(-1, np.array([0, 1]), np.zeros(1, dtype=np.int32), outside, width)
        self._label = outside

    def sift(self, runs: Runs, sizes: NDArray[np.int64], codes: NDArray[np.int32], *, end: bool = False) -> Runs:
        """Take the next rows, and return those that are finished, perhaps none.

        Parameters
        ----------
        sizes
            int64 (runs,): what each run measures.
        codes
            int32 (kinds,): of kinds with equally long borders, the one with the lowest code is taken.
        end
            Whether these rows are the map's last ones.
        """
        if end:  # one more row, of no data
            runs = Runs(
                runs.top,
                np.append(runs.row, runs.row[-1] + 1),
                np.append(runs.first, np.int32(0)),
                np.append(runs.kind, np.int32(_OUTSIDE)),
                runs.width,
            )
            sizes = np.append(sizes, 0)
        held, new = self._held, runs.first.size
        row = np.concatenate((held.row, held.row[-1] + runs.row[1:]))
        first, kind = np.concatenate((held.first, runs.first)), np.concatenate((held.kind, runs.kind))
        label = np.concatenate((self._label, np.empty(new, dtype=np.int32)))
        # Contacts lie between runs side by side, and between those one above the other, seen from either.
        t = _grown(self._tables, new, 6 * first.size + 2 * row.size)
        _take_in(t, row, first, kind, label, sizes, held.height, held.top, self._width, self._least, self._sides)
        now = held.top + row.size - 2
        if self._holes:
            _find_holes(t, now, self._least, self._delay)
        else:
            _merge(t, now, self._least, codes)
        count = _count_settled(t, row, label, self._least)
        stop = count - 1 if end else count
        out = _released(t, held.top, row[1 : stop + 1], first, label, self._width)
        # The last of these rows stays, as the one before the rows that are held back.
        last = count - 1
        self._held = Runs(held.top + last, row[last:] - row[last], first[row[last] :], kind[row[last] :], self._width)
        self._label = label[row[last] :].copy()
        self._tables = _compacted(t, self._label, self._least)
        return out


def _empty(regions: int, contacts: int) -> _Tables:
    return _Tables(
        np.empty((regions, 7), dtype=np.int32),
        np.empty((regions, 3), dtype=np.int64),
        np.empty((contacts, 2), dtype=np.int32),
        np.empty(contacts, dtype=np.int64),
        np.zeros(2, dtype=np.int64),
    )


def _grown(t: _Tables, regions: int, contacts: int) -> _Tables:
    """Copy the tables, with room for more."""
    had_regions, had_contacts = t.used.tolist()
    new = _empty(had_regions + regions, had_contacts + contacts)
    new.region[:had_regions], new.size[:had_regions] = t.region, t.size
    new.contact[:had_contacts], new.length[:had_contacts] = t.contact, t.length
    new.used[:] = t.used
    return new


def _released(
    t: _Tables, top: int, row: NDArray[np.int64], first: NDArray[np.int32], label: NDArray[np.int32], width: int
) -> Runs:
    """Make runs of rows that are settled, which begin after row `top`; neighbours of one kind are one run."""
    count = row[-1] - row[0]
    starts = np.zeros(row.size, dtype=np.int64)
    own_first, own_kind = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.int32)
    many = _rewrite(t, row, first, label, starts, own_first, own_kind)
    return Runs(top + 1, starts, own_first[:many].copy(), own_kind[:many].copy(), width)


def _compacted(t: _Tables, label: NDArray[np.int32], least: int) -> _Tables:
    """Keep the regions of rows that are held back, and those that they touch; number them, and `label`, anew."""
    number = np.full(t.used[0], -1, dtype=np.int32)
    keep = np.empty(t.used[0], dtype=np.int32)
    count = _number(t, label, least, number, keep)
    kept = _empty(count, int(t.used[1]))
    contacts = _copy(t, keep[:count], least, number, kept)
    return kept._replace(
        contact=kept.contact[:contacts].copy(),
        length=kept.length[:contacts].copy(),
        used=np.array([count, contacts], dtype=np.int64),
    )


@compiled
def _join(t, a, b, least):  # type: ignore[no-untyped-def]
    """Make one region of two of the same kind."""
    region, size = t.region, t.size
    if size[b, _START] < size[a, _START]:
        a, b = b, a
    region[b, PARENT] = a
    region[a, _LAST] = max(region[a, _LAST], region[b, _LAST])
    region[a, _EDGE] |= region[b, _EDGE]
    size[a, _SIZE] += size[b, _SIZE]
    if size[a, _SIZE] >= least:  # what it touches does not matter any more
        region[a, _FIRST] = region[a, _FINAL] = -1
    elif region[b, _FIRST] >= 0:
        if region[a, _FIRST] < 0:
            region[a, _FIRST] = region[b, _FIRST]
        else:
            t.contact[region[a, _FINAL], _NEXT] = region[b, _FIRST]
        region[a, _FINAL] = region[b, _FINAL]
    return a


@compiled
def _touch(t, a, b, length, least):  # type: ignore[no-untyped-def]
    """Note that the regions touch, with each that is small, or that one touches what has no data."""
    region = t.region
    for own, other in ((a, b), (b, a)):
        if own < 0:
            continue
        if other < 0:
            region[own, _EDGE] = 1
        elif t.size[own, _SIZE] < least:
            k = t.used[1]
            t.used[1] += 1
            t.contact[k, _OTHER], t.contact[k, _NEXT], t.length[k] = other, -1, length
            if region[own, _FIRST] < 0:
                region[own, _FIRST] = k
            else:
                t.contact[region[own, _FINAL], _NEXT] = k
            region[own, _FINAL] = k


@compiled
def _take_in(t, row, first, kind, label, sizes, held, top, width, least, sides):  # type: ignore[no-untyped-def]
    """Label the rows from number `held` on, and note what touches what."""
    region = t.region
    base = row[held]
    for r in range(held, row.size - 1):
        i, i_end, j, j_end = row[r - 1], row[r], row[r], row[r + 1]
        for k in range(j, j_end):
            label[k] = _OUTSIDE
        while i < i_end and j < j_end:
            if kind[i] == kind[j] and kind[j] >= 0:
                above = root(region, label[i])
                own = above if label[j] < 0 else root(region, label[j])
                label[j] = above if own == above else _join(t, own, above, least)
            north = first[i + 1] if i + 1 < i_end else width
            south = first[j + 1] if j + 1 < j_end else width
            i += north <= south
            j += south <= north
        for j in range(row[r], j_end):
            if kind[j] < 0:
                continue
            if label[j] < 0:
                k = t.used[0]
                t.used[0] += 1
                region[k, PARENT], region[k, _KIND], region[k, _EDGE], region[k, _BECOMES] = k, kind[j], 0, -1
                region[k, _FIRST] = region[k, _FINAL] = -1
                t.size[k, _SIZE], t.size[k, _START], t.size[k, _HOLE] = 0, (top + r) * width + first[j], 0
                label[j] = k
            else:
                label[j] = root(region, label[j])
            region[label[j], _LAST] = top + r
            t.size[label[j], _SIZE] += sizes[j - base]
        _touch(t, np.int32(_OUTSIDE), label[row[r]], 0, least)
        _touch(t, label[j_end - 1], np.int32(_OUTSIDE), 0, least)
        for j in range(row[r] + 1, j_end):
            _touch(t, label[j - 1], label[j], sides[1], least)
        i, j, c = row[r - 1], row[r], 0
        while i < i_end and j < j_end:
            north = first[i + 1] if i + 1 < i_end else width
            south = first[j + 1] if j + 1 < j_end else width
            end = min(north, south)
            if kind[i] != kind[j]:
                above = label[i] if label[i] < 0 else np.int32(root(region, label[i]))
                _touch(t, above, label[j], (end - c) * sides[0], least)
            c = end
            i += north == end
            j += south == end


@compiled
def _merge(t, now, least, codes):  # type: ignore[no-untyped-def]
    """Give small regions that are closed at row `now` to what they share most with, where that is decided."""
    region, size = t.region, t.size
    most = t.used[0]
    heap = np.empty(2 * most, dtype=np.int64), np.empty(2 * most, dtype=np.int64), np.empty(2 * most, dtype=np.int64)
    count = 0
    for k in range(most):
        if region[k, PARENT] == k and region[k, _LAST] < now and size[k, _SIZE] < least:
            count = push(heap, count, size[k, _SIZE], size[k, _START], k)
    shared = np.zeros(codes.size, dtype=np.int64)
    while count > 0:
        own, k = heap[0][0], heap[2][0]
        count = pop(heap, count)
        if region[k, PARENT] != k or size[k, _SIZE] != own or region[k, _LAST] >= now:
            continue
        shared[:] = 0
        best, waits = -1, False
        contact = region[k, _FIRST]
        while contact >= 0:
            other = root(region, t.contact[contact, _OTHER])
            if other != k:
                kind = region[other, _KIND]
                shared[kind] += t.length[contact]
                waits |= size[other, _SIZE] < own or (
                    size[other, _SIZE] == own and size[other, _START] < size[k, _START]
                )
                if (
                    best < 0
                    or shared[kind] > shared[best]
                    or (shared[kind] == shared[best] and codes[kind] < codes[best])
                ):
                    best = kind
            contact = t.contact[contact, _NEXT]
        if waits:
            continue
        if best < 0:
            size[k, _SIZE] = _SETTLED  # there is nothing beside it
            continue
        region[k, _KIND] = best
        contact, grown = region[k, _FIRST], k
        while contact >= 0:
            other = root(region, t.contact[contact, _OTHER])
            after = t.contact[contact, _NEXT]
            if other != grown and region[other, _KIND] == best:
                grown = _join(t, grown, other, least)
            contact = after
        if size[grown, _SIZE] < least and region[grown, _LAST] < now:
            count = push(heap, count, size[grown, _SIZE], size[grown, _START], grown)


@compiled
def _find_holes(t, now, least, delay):  # type: ignore[no-untyped-def]
    """Find small holes among the regions that are closed at row `now`, and settle what cannot be in another one.

    Regions that touch make a graph. Hopcroft and Tarjan's (1973) search in depth finds those that alone connect others
    with what is outside: large regions, open ones, and what has no data.
    """
    region, size = t.region, t.size
    most = t.used[0]
    small = np.zeros(most, dtype=np.bool_)
    for k in range(most):
        small[k] = region[k, PARENT] == k and region[k, _LAST] < now and size[k, _SIZE] < least
    # When a region was found, and the earliest one that can be reached below it other than through its parent. The
    # outside counts as found at 0.
    found, reached = np.zeros(most, dtype=np.int64), np.zeros(most, dtype=np.int64)
    parent, contact = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32)
    below = np.empty(most, dtype=np.int64)
    order, stack = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32)
    clock = 0
    for s in range(most):
        if not small[s] or found[s] or not _is_outer(t, small, s):
            continue
        begin = clock
        # The kind of the large regions around the cluster, -1 for none so far, -2 for several or no data; and whether
        # all that is small in it is closed.
        kind, complete = -1, True
        depth, v, came = 0, s, -1
        while True:
            if not found[v]:
                order[clock] = v
                clock += 1
                found[v] = clock
                reached[v] = 0 if _is_outer(t, small, v) else clock
                parent[v], below[v], contact[v] = came, size[v, _SIZE], region[v, _FIRST]
                stack[depth] = v
                depth += 1
                if region[v, _EDGE]:
                    kind = -2
            if contact[v] < 0:
                depth -= 1
                if depth == 0:
                    break
                p = stack[depth - 1]
                reached[p] = min(reached[p], reached[v])
                below[p] += below[v]
                v = p
                continue
            other = root(region, t.contact[contact[v], _OTHER])
            contact[v] = t.contact[contact[v], _NEXT]
            if not small[other]:
                if size[other, _SIZE] < least:
                    complete = False
                elif size[other, _SIZE] == _SETTLED or (kind != -1 and kind != region[other, _KIND]):
                    kind = -2
                else:
                    kind = region[other, _KIND]
            elif not found[other]:
                came, v = v, other
            elif other != parent[v] and other != v:
                reached[v] = min(reached[v], found[other])
        whole = complete and kind >= 0 and below[s] < least
        for k in range(begin, clock):
            v = order[k]
            p = parent[v]
            becomes, hole = -1, 0
            if whole:
                becomes, hole = kind, below[s]
            elif p >= 0 and region[p, _BECOMES] >= 0 and size[p, _HOLE] >= below[v]:
                becomes, hole = region[p, _BECOMES], size[p, _HOLE]
            elif p >= 0 and reached[v] >= found[p] and below[v] < least:
                becomes, hole = region[p, _KIND], below[v]
            if hole > size[v, _HOLE]:
                region[v, _BECOMES], size[v, _HOLE] = becomes, hole
            if complete or region[v, _LAST] + delay < now:
                contact[v] = -2
        for k in range(begin, clock):
            if contact[order[k]] == -2:
                size[order[k], _SIZE] = _SETTLED


@compiled
def _is_outer(t, small, k):  # type: ignore[no-untyped-def]
    """Say whether a small region touches something that is not small."""
    if t.region[k, _EDGE]:
        return True
    contact = t.region[k, _FIRST]
    while contact >= 0:
        if not small[root(t.region, t.contact[contact, _OTHER])]:
            return True
        contact = t.contact[contact, _NEXT]
    return False


@compiled
def _count_settled(t, row, label, least):  # type: ignore[no-untyped-def]
    """Return how many rows from the first on hold nothing that may change."""
    for r in range(row.size - 1):
        for k in range(row[r], row[r + 1]):
            if label[k] >= 0 and t.size[root(t.region, label[k]), _SIZE] < least:
                return r
    return row.size - 1


@compiled
def _rewrite(t, row, first, label, starts, own_first, own_kind):  # type: ignore[no-untyped-def]
    n = 0
    for r in range(row.size - 1):
        for k in range(row[r], row[r + 1]):
            kind = _OUTSIDE
            if label[k] >= 0:
                own = root(t.region, label[k])
                kind = t.region[own, _BECOMES] if t.region[own, _BECOMES] >= 0 else t.region[own, _KIND]
            if k == row[r] or kind != own_kind[n - 1]:
                own_first[n], own_kind[n] = first[k], kind
                n += 1
        starts[r + 1] = n
    return n


@compiled
def _number(t, label, least, number, keep):  # type: ignore[no-untyped-def]
    n = 0
    for k in range(label.size):
        if label[k] < 0:
            continue
        own = root(t.region, label[k])
        if number[own] < 0:
            number[own], keep[n] = n, own
            n += 1
        label[k] = number[own]
    for m in range(n):
        if t.size[keep[m], _SIZE] >= least:
            continue
        contact = t.region[keep[m], _FIRST]
        while contact >= 0:
            other = root(t.region, t.contact[contact, _OTHER])
            if number[other] < 0:
                number[other], keep[n] = n, other
                n += 1
            contact = t.contact[contact, _NEXT]
    return n


@compiled
def _copy(t, keep, least, number, kept):  # type: ignore[no-untyped-def]
    """Copy regions, and one contact for each pair of them that had several; return how many contacts there are."""
    contacts = 0
    last = np.full(keep.size, -1, dtype=np.int64)
    for m in range(keep.size):
        own = keep[m]
        kept.region[m], kept.size[m] = t.region[own], t.size[own]
        kept.region[m, PARENT] = m
        kept.region[m, _FIRST] = kept.region[m, _FINAL] = -1
        if t.size[own, _SIZE] >= least:
            continue
        begin = contacts
        contact = t.region[own, _FIRST]
        while contact >= 0:
            other = number[root(t.region, t.contact[contact, _OTHER])]
            if other != m:
                if last[other] >= begin:
                    kept.length[last[other]] += t.length[contact]
                else:
                    last[other] = contacts
                    kept.contact[contacts, _OTHER], kept.contact[contacts, _NEXT] = other, contacts + 1
                    kept.length[contacts] = t.length[contact]
                    contacts += 1
            contact = t.contact[contact, _NEXT]
        if contacts > begin:
            kept.region[m, _FIRST], kept.region[m, _FINAL] = begin, contacts - 1
            kept.contact[contacts - 1, _NEXT] = -1
    return contacts
