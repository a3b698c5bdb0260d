import threading
import time

import pytest

from segkit.runtime.prefetch import background_writer, prefetch


def test_ahead_keeps_order_and_its_distance():
    made = []

    def numbers():
        for number in range(20):
            made.append(number)
            yield number

    for number in prefetch(numbers(), depth=3):
        time.sleep(0.001)
        assert made[-1] <= number + 4
    assert made == list(range(20))


def test_behind_keeps_order_and_one_waits():
    begun, done = [], []

    def work(number):
        begun.append(number)
        time.sleep(0.001)
        done.append((number, threading.get_ident()))

    with background_writer(work) as put:
        for number in range(20):
            put(number)
            assert len(done) >= number - 1
    assert [number for number, _ in done] == list(range(20))
    assert {thread for _, thread in done}.isdisjoint({threading.get_ident()})


@pytest.mark.parametrize("broken", [3, 4])
def test_behind_raises_what_went_wrong(broken):
    def work(number):
        if number == broken:
            raise ValueError(f"{number} is broken")

    taken = []

    def hand_over_all():
        with background_writer(work) as put:
            for number in range(5):
                put(number)
                taken.append(number)

    with pytest.raises(ValueError, match=f"{broken} is broken"):
        hand_over_all()
    assert taken == list(range(broken + 1))
