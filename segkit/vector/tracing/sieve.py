"""Merge small regions and small holes into their neighbours, before borders are traced.

Rows are held back until all their regions are decided, and then returned with the new classes. So memory holds only the
rows that contain small regions, and the result does not depend on how the map is divided into strips.

**Small regions** take the class with which they share the longest border, the smallest region first. The order matters
to a region only if a smaller neighbour comes before it. So a region can be decided when it is closed and all its
neighbours are larger so far: they come later, and until then none of its borders can change.

**Small holes** are groups of small regions that a single region separates from everything else, or that are surrounded
by large regions of a single class. If a hole lies in another small hole, the outer one is filled.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segkit.vector.tracing.heap import pop, push
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.runs import Runs
from segkit.vector.tracing.union_find import PARENT, root

_NO_DATA = -1
_DECIDED = 2**62

# Columns of a region, int32: parent region (union-find); class index; last row; first and last contact; whether it
# touches no data; new class index, -1 if unchanged.
_CLASS_INDEX, _LAST_ROW, _FIRST_CONTACT, _LAST_CONTACT, _TOUCHES_NO_DATA, _BECOMES = range(PARENT + 1, 7)
# Columns of a region, int64: size; first pixel in raster order; size of the hole with which it is filled.
_SIZE, _START, _HOLE_SIZE = range(3)
# Columns of a contact, int32: region on the other side, next contact in the list; its length is int64.
_NEIGHBOUR, _NEXT = range(2)


class _Tables(NamedTuple):
    """Tables of regions and contacts; `used` has the number of rows in use of each."""

    region: NDArray[np.int32]
    size: NDArray[np.int64]
    contact: NDArray[np.int32]
    length: NDArray[np.int64]
    used: NDArray[np.int64]


class Sieve:
    """Takes the rows of a band and returns them without small regions, or without small holes.

    Parameters
    ----------
    width
        Pixels per row.
    min_size
        Smallest size of regions or holes that stay, in the unit of `sizes`.
    sides
        Lengths of a pixel's upper and left side in any unit, to compare borders.
    holes
        Fill small holes instead of merging small regions.
    rows
        Maximum number of rows that a hole below `min_size` can span.
    """

    def __init__(
        self, width: int, min_size: int, sides: tuple[int, int], *, holes: bool = False, rows: int = 0
    ) -> None:
        self._width, self._min_size, self._sides, self._holes = width, min_size, sides, holes
        # After twice as many rows, the surroundings of a hole are closed, too, or too large.
        self._delay = 2 * rows + 2
        self._tables = _empty(0, 0)
        # The rows that are held back, preceded by one more row, at first without data.
        outside = np.full(1, _NO_DATA, dtype=np.int32)
        self._held = Runs(-1, np.array([0, 1]), np.zeros(1, dtype=np.int32), outside, width)
        self._label = outside

    def sift(self, runs: Runs, sizes: NDArray[np.int64], codes: NDArray[np.int32], *, end: bool = False) -> Runs:
        """Take the next rows and return those that are finished, possibly none.

        Parameters
        ----------
        sizes
            int64 (runs,): size of each run.
        codes
            int32 (classes,): among classes with equally long borders, the lowest code is used.
        end
            Whether these are the last rows of the map.
        """
        if end:  # append a row without data
            runs = Runs(
                runs.top,
                np.append(runs.row, runs.row[-1] + 1),
                np.append(runs.first, np.int32(0)),
                np.append(runs.class_index, np.int32(_NO_DATA)),
                runs.width,
            )
            sizes = np.append(sizes, 0)
        held, new = self._held, runs.first.size
        row = np.concatenate((held.row, held.row[-1] + runs.row[1:]))
        first, class_index = (
            np.concatenate((held.first, runs.first)),
            np.concatenate((held.class_index, runs.class_index)),
        )
        label = np.concatenate((self._label, np.empty(new, dtype=np.int32)))
        # Runs side by side and runs above each other are in contact; a contact is stored for both sides.
        t = _enlarge(self._tables, new, 6 * first.size + 2 * row.size)
        _add_rows(
            t, row, first, class_index, label, sizes, held.height, held.top, self._width, self._min_size, self._sides
        )
        last_row = held.top + row.size - 2
        if self._holes:
            _find_holes(t, last_row, self._min_size, self._delay)
        else:
            _merge(t, last_row, self._min_size, codes)
        count = _count_decided_rows(t, row, label, self._min_size)
        stop = count - 1 if end else count
        out = _rewrite_rows(t, held.top, row[1 : stop + 1], first, label, self._width)
        # The last of these rows is kept as the row before those held back.
        last = count - 1
        self._held = Runs(
            held.top + last, row[last:] - row[last], first[row[last] :], class_index[row[last] :], self._width
        )
        self._label = label[row[last] :].copy()
        self._tables = _compact(t, self._label, self._min_size)
        return out


def _empty(regions: int, contacts: int) -> _Tables:
    return _Tables(
        np.empty((regions, 7), dtype=np.int32),
        np.empty((regions, 3), dtype=np.int64),
        np.empty((contacts, 2), dtype=np.int32),
        np.empty(contacts, dtype=np.int64),
        np.zeros(2, dtype=np.int64),
    )


def _enlarge(t: _Tables, regions: int, contacts: int) -> _Tables:
    """Return copies of the tables with more rows."""
    had_regions, had_contacts = t.used.tolist()
    new = _empty(had_regions + regions, had_contacts + contacts)
    new.region[:had_regions], new.size[:had_regions] = t.region, t.size
    new.contact[:had_contacts], new.length[:had_contacts] = t.contact, t.length
    new.used[:] = t.used
    return new


def _rewrite_rows(
    t: _Tables, top: int, row: NDArray[np.int64], first: NDArray[np.int32], label: NDArray[np.int32], width: int
) -> Runs:
    """Return the runs of decided rows, which start after row `top`; neighbours of one class become one run."""
    count = row[-1] - row[0]
    starts = np.zeros(row.size, dtype=np.int64)
    out_first, out_class_index = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.int32)
    many = _rewrite(t, row, first, label, starts, out_first, out_class_index)
    return Runs(top + 1, starts, out_first[:many].copy(), out_class_index[:many].copy(), width)


def _compact(t: _Tables, label: NDArray[np.int32], min_size: int) -> _Tables:
    """Keep only regions of the rows held back and their neighbours; renumber them in the tables and in `label`."""
    number = np.full(t.used[0], -1, dtype=np.int32)
    keep = np.empty(t.used[0], dtype=np.int32)
    count = _number_regions(t, label, min_size, number, keep)
    compact = _empty(count, int(t.used[1]))
    contacts = _copy_regions(t, keep[:count], min_size, number, compact)
    return compact._replace(
        contact=compact.contact[:contacts].copy(),
        length=compact.length[:contacts].copy(),
        used=np.array([count, contacts], dtype=np.int64),
    )


@compiled
def _join(t, a, b, min_size):
    """Join two regions of the same class."""
    region, size = t.region, t.size
    if size[b, _START] < size[a, _START]:
        a, b = b, a
    region[b, PARENT] = a
    region[a, _LAST_ROW] = max(region[a, _LAST_ROW], region[b, _LAST_ROW])
    region[a, _TOUCHES_NO_DATA] |= region[b, _TOUCHES_NO_DATA]
    size[a, _SIZE] += size[b, _SIZE]
    if size[a, _SIZE] >= min_size:  # its neighbours no longer matter
        region[a, _FIRST_CONTACT] = region[a, _LAST_CONTACT] = -1
    elif region[b, _FIRST_CONTACT] >= 0:
        if region[a, _FIRST_CONTACT] < 0:
            region[a, _FIRST_CONTACT] = region[b, _FIRST_CONTACT]
        else:
            t.contact[region[a, _LAST_CONTACT], _NEXT] = region[b, _FIRST_CONTACT]
        region[a, _LAST_CONTACT] = region[b, _LAST_CONTACT]
    return a


@compiled
def _add_contact(t, a, b, length, min_size):
    """Record a contact of two regions for each that is small, or that one touches no data."""
    region = t.region
    for one, other in ((a, b), (b, a)):
        if one < 0:
            continue
        if other < 0:
            region[one, _TOUCHES_NO_DATA] = 1
        elif t.size[one, _SIZE] < min_size:
            k = t.used[1]
            t.used[1] += 1
            t.contact[k, _NEIGHBOUR], t.contact[k, _NEXT], t.length[k] = other, -1, length
            if region[one, _FIRST_CONTACT] < 0:
                region[one, _FIRST_CONTACT] = k
            else:
                t.contact[region[one, _LAST_CONTACT], _NEXT] = k
            region[one, _LAST_CONTACT] = k


@compiled
def _add_rows(t, row, first, class_index, label, sizes, held, top, width, min_size, sides):
    """Label the rows from index `held` on and record their contacts."""
    region = t.region
    base = row[held]
    for r in range(held, row.size - 1):
        i, i_end, j, j_end = row[r - 1], row[r], row[r], row[r + 1]
        for k in range(j, j_end):
            label[k] = _NO_DATA
        while i < i_end and j < j_end:
            if class_index[i] == class_index[j] and class_index[j] >= 0:
                above = root(region, label[i])
                current = above if label[j] < 0 else root(region, label[j])
                label[j] = above if current == above else _join(t, current, above, min_size)
            north = first[i + 1] if i + 1 < i_end else width
            south = first[j + 1] if j + 1 < j_end else width
            i += north <= south
            j += south <= north
        for j in range(row[r], j_end):
            if class_index[j] < 0:
                continue
            if label[j] < 0:
                k = t.used[0]
                t.used[0] += 1
                region[k, PARENT], region[k, _CLASS_INDEX], region[k, _TOUCHES_NO_DATA], region[k, _BECOMES] = (
                    k,
                    class_index[j],
                    0,
                    -1,
                )
                region[k, _FIRST_CONTACT] = region[k, _LAST_CONTACT] = -1
                t.size[k, _SIZE], t.size[k, _START], t.size[k, _HOLE_SIZE] = 0, (top + r) * width + first[j], 0
                label[j] = k
            else:
                label[j] = root(region, label[j])
            region[label[j], _LAST_ROW] = top + r
            t.size[label[j], _SIZE] += sizes[j - base]
        _add_contact(t, np.int32(_NO_DATA), label[row[r]], 0, min_size)
        _add_contact(t, label[j_end - 1], np.int32(_NO_DATA), 0, min_size)
        for j in range(row[r] + 1, j_end):
            _add_contact(t, label[j - 1], label[j], sides[1], min_size)
        i, j, c = row[r - 1], row[r], 0
        while i < i_end and j < j_end:
            north = first[i + 1] if i + 1 < i_end else width
            south = first[j + 1] if j + 1 < j_end else width
            end = min(north, south)
            if class_index[i] != class_index[j]:
                above = label[i] if label[i] < 0 else np.int32(root(region, label[i]))
                _add_contact(t, above, label[j], (end - c) * sides[0], min_size)
            c = end
            i += north == end
            j += south == end


@compiled
def _merge(t, last_row, min_size, codes):
    """Merge small regions that end above `last_row` into the class with the longest border, if that is decided."""
    region, size = t.region, t.size
    used = t.used[0]
    heap = np.empty(2 * used, dtype=np.int64), np.empty(2 * used, dtype=np.int64), np.empty(2 * used, dtype=np.int64)
    count = 0
    for k in range(used):
        if region[k, PARENT] == k and region[k, _LAST_ROW] < last_row and size[k, _SIZE] < min_size:
            count = push(heap, count, size[k, _SIZE], size[k, _START], k)
    shared = np.zeros(codes.size, dtype=np.int64)
    while count > 0:
        own_size, k = heap[0][0], heap[2][0]
        count = pop(heap, count)
        if region[k, PARENT] != k or size[k, _SIZE] != own_size or region[k, _LAST_ROW] >= last_row:
            continue
        shared[:] = 0
        best, waits = -1, False
        contact = region[k, _FIRST_CONTACT]
        while contact >= 0:
            other = root(region, t.contact[contact, _NEIGHBOUR])
            if other != k:
                class_index = region[other, _CLASS_INDEX]
                shared[class_index] += t.length[contact]
                waits |= size[other, _SIZE] < own_size or (
                    size[other, _SIZE] == own_size and size[other, _START] < size[k, _START]
                )
                if (
                    best < 0
                    or shared[class_index] > shared[best]
                    or (shared[class_index] == shared[best] and codes[class_index] < codes[best])
                ):
                    best = class_index
            contact = t.contact[contact, _NEXT]
        if waits:
            continue
        if best < 0:
            size[k, _SIZE] = _DECIDED  # it has no neighbours
            continue
        region[k, _CLASS_INDEX] = best
        contact, grown = region[k, _FIRST_CONTACT], k
        while contact >= 0:
            other = root(region, t.contact[contact, _NEIGHBOUR])
            after = t.contact[contact, _NEXT]
            if other != grown and region[other, _CLASS_INDEX] == best:
                grown = _join(t, grown, other, min_size)
            contact = after
        if size[grown, _SIZE] < min_size and region[grown, _LAST_ROW] < last_row:
            count = push(heap, count, size[grown, _SIZE], size[grown, _START], grown)


@compiled
def _find_holes(t, last_row, min_size, delay):
    """Find small holes among the regions that end above `last_row`, and decide those that cannot be in another hole.

    Regions in contact form a graph. Hopcroft and Tarjan's (1973) depth-first search finds the articulation points: the
    regions that alone connect others to the outside, which is large regions, open regions and no data.
    """
    region, size = t.region, t.size
    used = t.used[0]
    small = np.zeros(used, dtype=np.bool_)
    for k in range(used):
        small[k] = region[k, PARENT] == k and region[k, _LAST_ROW] < last_row and size[k, _SIZE] < min_size
    # Discovery time of a region, and the earliest discovery time reachable from its subtree other than through its
    # parent. The outside has time 0.
    found, reached = np.zeros(used, dtype=np.int64), np.zeros(used, dtype=np.int64)
    parent, contact = np.empty(used, dtype=np.int32), np.empty(used, dtype=np.int32)
    below = np.empty(used, dtype=np.int64)
    order, stack = np.empty(used, dtype=np.int32), np.empty(used, dtype=np.int32)
    clock = 0
    for s in range(used):
        if not small[s] or found[s] or not _is_outer(t, small, s):
            continue
        begin = clock
        # Class of the large regions around the cluster, -1 for none so far, -2 for several or no data; and whether all
        # small regions of the cluster are closed.
        class_index, complete = -1, True
        depth, v, previous = 0, s, -1
        while True:
            if not found[v]:
                order[clock] = v
                clock += 1
                found[v] = clock
                reached[v] = 0 if _is_outer(t, small, v) else clock
                parent[v], below[v], contact[v] = previous, size[v, _SIZE], region[v, _FIRST_CONTACT]
                stack[depth] = v
                depth += 1
                if region[v, _TOUCHES_NO_DATA]:
                    class_index = -2
            if contact[v] < 0:
                depth -= 1
                if depth == 0:
                    break
                p = stack[depth - 1]
                reached[p] = min(reached[p], reached[v])
                below[p] += below[v]
                v = p
                continue
            other = root(region, t.contact[contact[v], _NEIGHBOUR])
            contact[v] = t.contact[contact[v], _NEXT]
            if not small[other]:
                if size[other, _SIZE] < min_size:
                    complete = False
                elif size[other, _SIZE] == _DECIDED or (
                    class_index != -1 and class_index != region[other, _CLASS_INDEX]
                ):
                    class_index = -2
                else:
                    class_index = region[other, _CLASS_INDEX]
            elif not found[other]:
                previous, v = v, other
            elif other != parent[v] and other != v:
                reached[v] = min(reached[v], found[other])
        is_hole = complete and class_index >= 0 and below[s] < min_size
        for k in range(begin, clock):
            v = order[k]
            p = parent[v]
            becomes, hole = -1, 0
            if is_hole:
                becomes, hole = class_index, below[s]
            elif p >= 0 and region[p, _BECOMES] >= 0 and size[p, _HOLE_SIZE] >= below[v]:
                becomes, hole = region[p, _BECOMES], size[p, _HOLE_SIZE]
            elif p >= 0 and reached[v] >= found[p] and below[v] < min_size:
                becomes, hole = region[p, _CLASS_INDEX], below[v]
            if hole > size[v, _HOLE_SIZE]:
                region[v, _BECOMES], size[v, _HOLE_SIZE] = becomes, hole
            if complete or region[v, _LAST_ROW] + delay < last_row:
                contact[v] = -2
        for k in range(begin, clock):
            if contact[order[k]] == -2:
                size[order[k], _SIZE] = _DECIDED


@compiled
def _is_outer(t, small, k):
    """Return whether a small region touches no data or a region that is not small."""
    if t.region[k, _TOUCHES_NO_DATA]:
        return True
    contact = t.region[k, _FIRST_CONTACT]
    while contact >= 0:
        if not small[root(t.region, t.contact[contact, _NEIGHBOUR])]:
            return True
        contact = t.contact[contact, _NEXT]
    return False


@compiled
def _count_decided_rows(t, row, label, min_size):
    """Return the number of rows, from the first one, in which all regions are decided."""
    for r in range(row.size - 1):
        for k in range(row[r], row[r + 1]):
            if label[k] >= 0 and t.size[root(t.region, label[k]), _SIZE] < min_size:
                return r
    return row.size - 1


@compiled
def _rewrite(t, row, first, label, starts, out_first, out_class_index):
    n = 0
    for r in range(row.size - 1):
        for k in range(row[r], row[r + 1]):
            class_index = _NO_DATA
            if label[k] >= 0:
                k_root = root(t.region, label[k])
                class_index = (
                    t.region[k_root, _BECOMES] if t.region[k_root, _BECOMES] >= 0 else t.region[k_root, _CLASS_INDEX]
                )
            if k == row[r] or class_index != out_class_index[n - 1]:
                out_first[n], out_class_index[n] = first[k], class_index
                n += 1
        starts[r + 1] = n
    return n


@compiled
def _number_regions(t, label, min_size, number, keep):
    n = 0
    for k in range(label.size):
        if label[k] < 0:
            continue
        k_root = root(t.region, label[k])
        if number[k_root] < 0:
            number[k_root], keep[n] = n, k_root
            n += 1
        label[k] = number[k_root]
    for m in range(n):
        if t.size[keep[m], _SIZE] >= min_size:
            continue
        contact = t.region[keep[m], _FIRST_CONTACT]
        while contact >= 0:
            other = root(t.region, t.contact[contact, _NEIGHBOUR])
            if number[other] < 0:
                number[other], keep[n] = n, other
                n += 1
            contact = t.contact[contact, _NEXT]
    return n


@compiled
def _copy_regions(t, keep, min_size, number, compact):
    """Copy regions, and merge several contacts of a pair into one; return the number of contacts."""
    contacts = 0
    last = np.full(keep.size, -1, dtype=np.int64)
    for m in range(keep.size):
        k_root = keep[m]
        compact.region[m], compact.size[m] = t.region[k_root], t.size[k_root]
        compact.region[m, PARENT] = m
        compact.region[m, _FIRST_CONTACT] = compact.region[m, _LAST_CONTACT] = -1
        if t.size[k_root, _SIZE] >= min_size:
            continue
        begin = contacts
        contact = t.region[k_root, _FIRST_CONTACT]
        while contact >= 0:
            other = number[root(t.region, t.contact[contact, _NEIGHBOUR])]
            if other != m:
                if last[other] >= begin:
                    compact.length[last[other]] += t.length[contact]
                else:
                    last[other] = contacts
                    compact.contact[contacts, _NEIGHBOUR], compact.contact[contacts, _NEXT] = other, contacts + 1
                    compact.length[contacts] = t.length[contact]
                    contacts += 1
            contact = t.contact[contact, _NEXT]
        if contacts > begin:
            compact.region[m, _FIRST_CONTACT], compact.region[m, _LAST_CONTACT] = begin, contacts - 1
            compact.contact[contacts - 1, _NEXT] = -1
    return contacts
