"""Sweep over rows of runs: label regions and build the arcs between them."""

from __future__ import annotations

import numpy as np

from segkit.vector.tracing.generalize import finish_arc
from segkit.vector.tracing.jit import compiled
from segkit.vector.tracing.simplify import mark
from segkit.vector.tracing.tables import (
    AFTER,
    ARC,
    ARCS,
    AREA,
    AROUND,
    BAND_ROWS,
    BEFORE,
    CLASS_INDEX,
    CONFIDENCE_COUNT,
    CONFIDENCE_SUM,
    EAST,
    EDGES,
    END,
    FIRST_SIDE,
    HORIZONTAL,
    LAST,
    LAST_SIDE,
    MAX_VERTICES,
    NEXT,
    NEXT_IN_REGION,
    NORTH,
    NOT_SELECTED,
    OF_NODE,
    OF_REGION,
    OF_VERTEX,
    OUTSIDE,
    PERIMETER,
    PIXELS,
    SOUTH,
    START,
    VERTICAL,
    WEST,
    X,
    Y,
    take_row,
)
from segkit.vector.tracing.union_find import PARENT, root


@compiled
def _join(t, a, b):
    """Join two regions; the result keeps the row of the one that starts first."""
    region = t.region
    if t.number[b, START] < t.number[a, START]:
        a, b = b, a
    region[b, PARENT] = a
    region[a, LAST] = max(region[a, LAST], region[b, LAST])
    region[a, MAX_VERTICES] += region[b, MAX_VERTICES]
    region[a, NEXT_IN_REGION], region[b, NEXT_IN_REGION] = region[b, NEXT_IN_REGION], region[a, NEXT_IN_REGION]
    if region[b, FIRST_SIDE] >= 0:
        if region[a, FIRST_SIDE] < 0:
            region[a, FIRST_SIDE] = region[b, FIRST_SIDE]
        else:
            last = region[a, LAST_SIDE]
            t.arc[last >> 1, NEXT + (last & 1)] = region[b, FIRST_SIDE]
        region[a, LAST_SIDE] = region[b, LAST_SIDE]
    for k in range(1, 3):
        t.number[a, k] += t.number[b, k]
    for k in range(3):
        t.total[a, k] += t.total[b, k]
    return a


@compiled
def sweep_rows(
    t, hanging, bits, pixel_measures, run_measures, row, first, class_index, label, confidence_sum, confidence_count,
    selected, top, width, generalise, smooth, tolerance, metres, outlines, closed,
):  # fmt: skip
    """Process the rows of `row` from 1 on (row 0 is the previous one); list the closed regions, return their number."""
    region, vertex, node, free = t.region, t.vertex, t.node, t.free
    longest = 0
    for r in range(row.size - 1):
        longest = max(longest, row[r + 1] - row[r])
    # Arcs that are finished on the line: an end vertex, or for a loop -2 minus one of its vertices; and the regions on
    # the left and right of a loop.
    finished = np.empty((4 * (2 * longest + 2), 3), dtype=np.int32)
    labels_around = np.empty(4, dtype=np.int32)
    none = np.empty(0, dtype=np.uint64)
    closings = 0
    for r in range(1, row.size - 1):
        line = top + r - 1
        start, i_end, end = row[r - 1], row[r], row[r + 1]
        _label(
            t, run_measures, row, first, class_index, label, confidence_sum, confidence_count, selected, r, line, width
        )

        # The corners on the line above the row.
        band = (line - 1) // BAND_ROWS * BAND_ROWS if line > 0 else 0
        pinning = generalise and line % BAND_ROWS == 0 and line > 0
        corridors = outlines.corridors[r - 1] if len(outlines.corridors) else none
        for word in range(corridors.size):
            bits[line - band, word] |= corridors[word]
        count = 0
        i, j = start, i_end
        nw = sw = OUTSIDE
        nw_label = sw_label = OUTSIDE
        c, along = -1, 0.0
        pending = -1  # the vertex from which an edge leads here from the west
        while c < width:
            north = first[i] if i < i_end else width
            south = first[j] if j < end else width
            c = min(north, south)
            here = (
                run_measures.upper[j]
                if south < width and south == c
                else (run_measures.lower[i] if c < width else run_measures.end[r - 1, 1])
            )
            ne, se, ne_label, se_label = nw, sw, nw_label, sw_label
            if north == c:
                ne, ne_label = (class_index[i], label[i]) if i < i_end else (OUTSIDE, OUTSIDE)
                i += 1
            if south == c:
                se, se_label = (class_index[j], label[j]) if j < end else (OUTSIDE, OUTSIDE)
                j += 1
            if nw != sw:
                if nw_label >= 0:
                    t.total[root(region, nw_label), PERIMETER] += here - along
                if sw_label >= 0:
                    t.total[sw_label, PERIMETER] += here - along
            along = here
            edges = (ne != se) << EAST | (sw != se) << SOUTH | (nw != sw) << WEST | (nw != ne) << NORTH
            degree = (ne != se) + (sw != se) + (nw != sw) + (nw != ne)
            pinned = pinning and degree == 2 and sw != se and sw >= 0 and se >= 0
            if pinned and corridors.size:
                pinned = not corridors[c >> 6] >> np.uint64(c & 63) & np.uint64(1)
            if (degree == 2 and edges != HORIZONTAL and edges != VERTICAL) or degree > 2 or pinned:
                if generalise:
                    mark(bits, band, c, line, True)
                if degree > 2 or pinned:
                    n = take_row(node, free, OF_NODE)
                    labels_around[0], labels_around[1] = ne_label, se_label
                    labels_around[2], labels_around[3] = sw_label, nw_label
                    for k in range(4):
                        node[n, ARC + k], node[n, AROUND + k] = -1, labels_around[k]
                        if generalise:
                            t.straight[n, 2 * k] = -1
                    node[n, EDGES], node[n, ARCS] = edges, degree
                else:
                    n = -1
                v = -1
                for direction in (NORTH, WEST, SOUTH, EAST):
                    if not edges >> direction & 1:
                        continue
                    if v < 0 or n >= 0:
                        v = take_row(vertex, free, OF_VERTEX)
                        vertex[v, X], vertex[v, Y] = c, line
                        vertex[v, BEFORE], vertex[v, END] = -1, v
                        vertex[v, AFTER] = -1 if n < 0 else -2 - (4 * n + direction)
                    if direction == SOUTH:
                        hanging[c] = v
                    elif direction == EAST:
                        pending = v
                    else:
                        end_of_arc = _link(vertex, hanging[c] if direction == NORTH else pending, v)
                        if end_of_arc != -1:
                            finished[count, 0] = end_of_arc
                            # The west edge closes a loop, at its lower right corner, with one region on the inside.
                            finished[count, 1], finished[count, 2] = nw_label, ne_label
                            count += 1
            nw, sw, nw_label, sw_label = ne, se, ne_label, se_label

        finish_arc(
            t, finished[:count], pixel_measures, bits, band, generalise, smooth, tolerance, metres, outlines, width
        )
        if pinning:
            for word in range(bits.shape[1]):
                bits[0, word] = bits[BAND_ROWS, word]
                for k in range(1, BAND_ROWS + 1):
                    bits[k, word] = 0

        for i in range(start, i_end):
            if label[i] >= 0:
                k = root(region, label[i])
                if region[k, LAST] == line - 1:
                    region[k, LAST] = -1
                    closed[closings] = k
                    closings += 1
    return closings


@compiled
def _label(t, run_measures, row, first, class_index, label, confidence_sum, confidence_count, selected, r, line, width):
    """Label the runs of a row with their regions and add their measures."""
    region = t.region
    i, i_end, j, end = row[r - 1], row[r], row[r], row[r + 1]
    for k in range(j, end):
        label[k] = OUTSIDE if class_index[k] < 0 else NOT_SELECTED
    while i < i_end and j < end:
        if class_index[i] == class_index[j] and label[i] >= 0:
            above = root(region, label[i])
            if label[j] < 0:
                label[j] = above
            else:
                current = root(region, label[j])
                if current != above:
                    label[j] = _join(t, current, above)
        north = first[i + 1] if i + 1 < i_end else width
        south = first[j + 1] if j + 1 < end else width
        i += north <= south
        j += south <= north
    for j in range(row[r], end):
        left = run_measures.left[j]
        if j > row[r] and label[j - 1] >= 0:
            t.total[label[j - 1], PERIMETER] += left
        if class_index[j] < 0 or not selected[class_index[j]]:
            continue
        if label[j] < 0:
            k = take_row(region, t.free, OF_REGION)
            region[k, PARENT] = region[k, NEXT_IN_REGION] = k
            region[k, FIRST_SIDE] = region[k, LAST_SIDE] = -1
            region[k, CLASS_INDEX], region[k, MAX_VERTICES] = class_index[j], 0
            t.number[k, START], t.number[k, PIXELS], t.number[k, CONFIDENCE_COUNT] = line * width + first[j], 0, 0
            t.total[k, AREA] = t.total[k, PERIMETER] = t.total[k, CONFIDENCE_SUM] = 0.0
            label[j] = k
        else:
            label[j] = root(region, label[j])
        k = label[j]
        region[k, LAST] = line
        t.number[k, PIXELS] += (first[j + 1] if j + 1 < end else width) - first[j]
        t.total[k, AREA] += run_measures.area[j]
        t.total[k, PERIMETER] += left
        if confidence_sum.size:
            at = j - row[1]
            t.total[k, CONFIDENCE_SUM] += confidence_sum[at]
            t.number[k, CONFIDENCE_COUNT] += confidence_count[at]
    if label[end - 1] >= 0:
        t.total[label[end - 1], PERIMETER] += run_measures.end[r - 1, 0]


@compiled
def _link(vertex, u, v):
    """Join two ends of arcs. Return an end if this finishes an arc, -2 - v if it closes a loop at v, otherwise -1."""
    if vertex[u, BEFORE] == -1:
        vertex[u, BEFORE] = v
    else:
        vertex[u, AFTER] = v
    if vertex[v, BEFORE] == -1:
        vertex[v, BEFORE] = u
    else:
        vertex[v, AFTER] = u
    a, b = vertex[u, END], vertex[v, END]
    if a == v:
        return -2 - v
    vertex[a, END], vertex[b, END] = b, a
    return a if vertex[a, AFTER] < -1 and vertex[b, AFTER] < -1 else -1
