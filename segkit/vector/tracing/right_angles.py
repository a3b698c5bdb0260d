"""Fit a right-angled outline to the pixel outline of one object, at any rotation.

The outline is followed at the middles of its pixel sides, which lie within half a pixel of the true line. It is split
into edges (Douglas and Peucker 1973), each edge gets the main direction, its perpendicular or a diagonal between, and
the line of this direction that fits its middles best. Neighbouring lines meet in the corners of the new outline.

Points (u, v) are in a plane in which right angles are those on the ground; the longer side of a pixel has length 1.
"""

from __future__ import annotations

import numpy as np

from segkit.vector.tracing.jit import compiled

# An outline with more edges is not that of a building.
_MAX_EDGES = 400
# The area of the object changes by at most this share.
MAX_AREA_CHANGE = 0.05
# An edge further from both directions stays diagonal if it is longer than this many tolerances.
_DIAGONAL_RADIANS, _LONG_DIAGONAL = np.pi / 8, 5.0
# Edges in a range of directions are summed: width of a bin, and reach of the sum.
_BINS, _REACH = 90, 6
_QUARTER, _EIGHTH = np.pi / 2, np.pi / 4
# Coordinates this close to a whole pixel are on it, so that axis-aligned outlines lie on the pixel grid.
_ROUNDING = 1e-9


@compiled
def fit_outline(x, y, frame, tolerance, direction):
    """Return a right-angled outline, without its first corner repeated.

    Parameters
    ----------
    x, y
        float (n,): columns and rows of the corners of a pixel outline, in order; the last one is not the first.
    frame
        (a, b, d): (u, v) = (a x + b y, d y).
    tolerance
        Maximum distance between the outlines, in the unit of (u, v).
    direction
        Main direction in radians; NaN if the outline has to tell.

    Returns
    -------
    tuple
        The main direction; columns and rows of the new corners, of size 0 if no outline is close enough.
    """
    a, b, d = frame
    none = np.empty(0)
    u, v = _middles(x, y, frame)
    breaks = _split(u, v, tolerance / 2)
    if breaks.size < 3 or breaks.size > _MAX_EDGES:
        return direction, none, none
    if np.isnan(direction):
        direction = _find_direction(u, v, breaks)
    heading, total = _lines(u, v, breaks, direction, tolerance)
    count = _drop_short(heading, total, direction, tolerance)
    if count < 4:
        return direction, none, none
    cu, cv = _corners(heading[:count], total, direction)
    if not (_is_simple(cu, cv) and _is_near(u, v, cu, cv, tolerance)):
        return direction, none, none
    outx, outy = np.empty(count), np.empty(count)
    for k in range(count):
        outy[k] = _whole(cv[k] / d)
        outx[k] = _whole((cu[k] - b * outy[k]) / a)
    area = signed_area(x, y)
    if abs(signed_area(outx, outy) - area) > MAX_AREA_CHANGE * abs(
        area
    ):  # also if the new outline runs the other way round
        return direction, none, none
    return direction, outx, outy


@compiled
def _whole(x):
    return np.rint(x) if abs(x - np.rint(x)) < _ROUNDING else x


@compiled
def signed_area(x, y):
    """Return the area of an outline, positive from the first axis to the second."""
    twice = 0.0
    for k in range(x.size):
        m = k + 1 if k + 1 < x.size else 0
        twice += (x[k] - x[0]) * (y[m] - y[0]) - (x[m] - x[0]) * (y[k] - y[0])
    return twice / 2


@compiled
def _middles(x, y, frame):
    """Return the middles of the pixel sides along an outline."""
    a, b, d = frame
    n = 0
    for k in range(x.size):
        m = k + 1 if k + 1 < x.size else 0
        n += int(abs(x[m] - x[k]) + abs(y[m] - y[k]))
    u, v = np.empty(n), np.empty(n)
    n = 0
    for k in range(x.size):
        m = k + 1 if k + 1 < x.size else 0
        dx, dy = np.sign(x[m] - x[k]), np.sign(y[m] - y[k])
        for step in range(int(abs(x[m] - x[k]) + abs(y[m] - y[k]))):
            px, py = x[k] + (step + 0.5) * dx, y[k] + (step + 0.5) * dy
            u[n], v[n] = a * px + b * py, d * py
            n += 1
    return u, v


@compiled
def _split(u, v, tolerance):
    """Return the numbers of the points between which straight edges are within the tolerance, in order."""
    n = u.size
    first = _furthest(u, v, u.mean(), v.mean())
    second = _furthest(u, v, u[first], v[first])
    is_break = np.zeros(n, dtype=np.bool_)
    is_break[first] = is_break[second] = True
    stack = np.empty((n + 2, 2), dtype=np.int64)
    stack[0, 0], stack[0, 1] = first, (second - first) % n
    stack[1, 0], stack[1, 1] = second, (first - second) % n
    waiting = 2
    while waiting > 0:
        waiting -= 1
        p, span = stack[waiting]
        q = (p + span) % n
        furthest, at = tolerance, -1
        for step in range(1, span):
            k = (p + step) % n
            off = _distance(u[k], v[k], u[p], v[p], u[q], v[q])
            if off > furthest:
                furthest, at = off, step
        if at > 0:
            is_break[(p + at) % n] = True
            stack[waiting, 0], stack[waiting, 1] = p, at
            stack[waiting + 1, 0], stack[waiting + 1, 1] = (p + at) % n, span - at
            waiting += 2
    return np.flatnonzero(is_break)


@compiled
def _furthest(u, v, u0, v0):
    return np.argmax((u - u0) ** 2 + (v - v0) ** 2)


@compiled
def _distance(u, v, pu, pv, qu, qv):
    """Return the distance of a point from the line segment p-q."""
    du, dv = qu - pu, qv - pv
    length = du * du + dv * dv
    t = min(max(((u - pu) * du + (v - pv) * dv) / length, 0.0), 1.0) if length > 0 else 0.0
    return np.hypot(u - pu - t * du, v - pv - t * dv)


@compiled
def _find_direction(u, v, breaks):
    """Return the direction, modulo a right angle, of most of the edges' length."""
    n = breaks.size
    angle, length = np.empty(n), np.empty(n)
    weight = np.zeros(_BINS)
    for k in range(n):
        p, q = breaks[k], breaks[(k + 1) % n]
        length[k] = np.hypot(u[q] - u[p], v[q] - v[p])
        angle[k] = np.arctan2(v[q] - v[p], u[q] - u[p])
        weight[int(np.floor(angle[k] / _QUARTER * _BINS)) % _BINS] += length[k]
    best, most = 0.0, -1.0
    for k in range(_BINS):
        around = 0.0
        for step in range(-_REACH, _REACH + 1):
            around += (_REACH + 1 - abs(step)) * weight[(k + step) % _BINS]
        if around > most:
            best, most = (k + 0.5) * _QUARTER / _BINS, around
    # The mean of these edges, and then the axis of inertia of their points, which knows where each edge lies.
    turn = total = 0.0
    for k in range(n):
        off = angle[k] - best - np.rint((angle[k] - best) / _QUARTER) * _QUARTER
        if abs(off) <= 1.5 * _REACH * _QUARTER / _BINS:
            turn += length[k] * off
            total += length[k]
    best += turn / total
    uu = uv = vv = 0.0
    for k in range(n):
        quarters = np.rint((angle[k] - best) / _QUARTER)
        if abs(angle[k] - best - quarters * _QUARTER) > 1.5 * _REACH * _QUARTER / _BINS:
            continue
        m, su, sv, suu, suv, svv = _moments(u, v, breaks[k], breaks[(k + 1) % n])
        suu, suv, svv = suu - su * su / m, suv - su * sv / m, svv - sv * sv / m
        if int(quarters) % 2:
            suu, suv, svv = svv, -suv, suu
        uu, uv, vv = uu + suu, uv + suv, vv + svv
    if uu == vv and uv == 0.0:
        return best
    axis = np.arctan2(2 * uv, uu - vv) / 2
    # Very short edges may have no clear axis.
    return axis if abs(np.sin(2 * (axis - best))) < 0.5 else best


@compiled
def _moments(u, v, p, q):
    """Return the number of points from p to q, their sums and those of their products, without the ends."""
    n = u.size
    span = (q - p) % n
    # The points at the ends may belong to the next edge.
    trim = min(2, (span - 1) // 3)
    total = np.zeros(6)
    for step in range(trim, span + 1 - trim):
        k = (p + step) % n
        total += np.array([1.0, u[k], v[k], u[k] * u[k], u[k] * v[k], v[k] * v[k]])
    return total[0], total[1], total[2], total[3], total[4], total[5]


@compiled
def _lines(u, v, breaks, direction, tolerance):
    """Return the headings of the edges, in eighths of a turn from the direction, and their points' count and sums."""
    n = breaks.size
    heading, total = np.empty(2 * n + 2, dtype=np.int64), np.zeros((2 * n + 2, 3))
    count = 0
    for k in range(n):
        p, q = breaks[k], breaks[(k + 1) % n]
        du, dv = u[q] - u[p], v[q] - v[p]
        angle = np.arctan2(dv, du) - direction
        quarter = np.rint(angle / _QUARTER)
        here = 2 * int(quarter) % 8
        if abs(angle - quarter * _QUARTER) > _DIAGONAL_RADIANS and np.hypot(du, dv) > _LONG_DIAGONAL * tolerance:
            here = int(np.rint(angle / _EIGHTH)) % 8
        m, su, sv, _, _, _ = _moments(u, v, p, q)
        sums = np.array([m, su, sv])
        count = _add_line(heading, total, count, here, sums, u[p], v[p], direction, tolerance)
    # The last line and the first one are neighbours, too.
    p = breaks[0]
    while (
        count > 2 and heading[count - 1] == heading[0] and _step(heading, total, count - 1, 0, direction) <= tolerance
    ):
        total[0] += total[count - 1]
        count -= 1
    if count > 2 and (heading[count - 1] - heading[0]) % 4 == 0:
        heading[count] = _across(heading, total, count - 1, 0, direction)
        total[count] = np.array([1.0, u[p], v[p]])
        count += 1
    return heading[:count], total[:count]


@compiled
def _add_line(heading, total, count, here, sums, u, v, direction, tolerance):
    """Append a line, or join it with the last one; between parallels further apart, a line through (u, v)."""
    heading[count], total[count] = here, sums
    if count == 0 or (here - heading[count - 1]) % 4:
        return count + 1
    if here == heading[count - 1] and _step(heading, total, count - 1, count, direction) <= tolerance:
        total[count - 1] += sums
        return count
    heading[count] = _across(heading, total, count - 1, count, direction)
    total[count] = np.array([1.0, u, v])
    heading[count + 1], total[count + 1] = here, sums
    return count + 2


@compiled
def _offset(heading, total, k, direction):
    """Return the distance of a line from the origin, along the normal of its axis."""
    axis = direction + (heading[k] % 4) * _EIGHTH
    return (np.cos(axis) * total[k, 2] - np.sin(axis) * total[k, 1]) / total[k, 0]


@compiled
def _step(heading, total, k, m, direction):
    """Return the distance between two parallel lines."""
    return abs(_offset(heading, total, m, direction) - _offset(heading, total, k, direction))


@compiled
def _across(heading, total, k, m, direction):
    """Return the heading that leads from a line to a parallel one; the second may carry another heading meanwhile."""
    axis = heading[k] % 4
    c, s = np.cos(direction + axis * _EIGHTH), np.sin(direction + axis * _EIGHTH)
    one = (c * total[k, 2] - s * total[k, 1]) / total[k, 0]
    other = (c * total[m, 2] - s * total[m, 1]) / total[m, 0]
    return axis + 2 if other > one else (axis + 6) % 8


@compiled
def _corners(heading, total, direction):
    """Return the corners between each line and the one before it."""
    n = heading.size
    u, v = np.empty(n), np.empty(n)
    for k in range(n):
        m = k - 1 if k > 0 else n - 1
        one, other = direction + (heading[m] % 4) * _EIGHTH, direction + (heading[k] % 4) * _EIGHTH
        p, q = _offset(heading, total, m, direction), _offset(heading, total, k, direction)
        # Two lines with -sin(axis) u + cos(axis) v = offset.
        turn = np.sin(other - one)
        u[k] = (p * np.cos(other) - q * np.cos(one)) / turn
        v[k] = (p * np.sin(other) - q * np.sin(one)) / turn
    return u, v


@compiled
def _drop_short(heading, total, direction, shortest):
    """Remove lines whose edge is shorter, the shortest first, and join their neighbours; return the number left."""
    count = heading.size
    while count > 4:
        u, v = _corners(heading[:count], total, direction)
        least, at = shortest, -1
        for k in range(count):
            before, after = heading[k - 1 if k > 0 else count - 1], heading[(k + 1) % count]
            if (before - after) % 8 == 4:
                continue  # the end of something narrow
            m = k + 1 if k + 1 < count else 0
            angle = direction + heading[k] * _EIGHTH
            # Negative if its neighbours meet before it.
            length = (u[m] - u[k]) * np.cos(angle) + (v[m] - v[k]) * np.sin(angle)
            if length < least:
                least, at = length, k
        if at < 0:
            break
        count = _remove(heading, total, count, at)
    return count


@compiled
def _remove(heading, total, count, at):
    """Remove a line; join its neighbours if they have the same heading."""
    before, after = at - 1 if at > 0 else count - 1, at + 1 if at + 1 < count else 0
    joined = heading[before] == heading[after]
    if joined:
        total[before] += total[after]
    kept = 0
    for k in range(count):
        if k != at and not (joined and k == after):
            heading[kept], total[kept] = heading[k], total[k]
            kept += 1
    return kept


@compiled
def _is_simple(u, v):
    """Return whether no two edges of an outline touch, except at their common corner."""
    n = u.size
    for i in range(n):
        p = (i + 1) % n
        for j in range(i + 2, n if i > 0 else n - 1):
            q = (j + 1) % n
            apart = min(u[i], u[p]) > max(u[j], u[q]) or min(u[j], u[q]) > max(u[i], u[p])
            apart = apart or min(v[i], v[p]) > max(v[j], v[q]) or min(v[j], v[q]) > max(v[i], v[p])
            crossing = _side(u, v, i, p, j) * _side(u, v, i, p, q) <= 0
            if not apart and crossing and _side(u, v, j, q, i) * _side(u, v, j, q, p) <= 0:
                return False
    return True


@compiled
def _side(u, v, p, q, k):
    return np.sign((u[q] - u[p]) * (v[k] - v[p]) - (u[k] - u[p]) * (v[q] - v[p]))


@compiled
def _is_near(u, v, cu, cv, tolerance):
    """Return whether all points of the outline are near the new one, and its corners near the outline."""
    n = cu.size
    for k in range(u.size):
        near = np.inf
        for m in range(n):
            q = (m + 1) % n
            near = min(near, _distance(u[k], v[k], cu[m], cv[m], cu[q], cv[q]))
            if near <= tolerance:
                break
        if near > tolerance:
            return False
    furthest = 0.0
    for m in range(n):
        furthest = max(furthest, ((u - cu[m]) ** 2 + (v - cv[m]) ** 2).min())
    return furthest <= tolerance * tolerance
