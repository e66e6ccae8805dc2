"""The cache held to a dict: what it still has is what was put, at any size, with any collisions."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vedette.core.cache import BytesCache

KEYS = st.binary(max_size=12) | st.sampled_from([b"", b"a", b"a\0", b"ab", b"b" * 20])


class CacheIsADictThatForgets(RuleBasedStateMachine):
    @initialize(
        bytes_max=st.integers(0, 3000),
        key_max=st.sampled_from([1, 8, 14]),
        hash_mask=st.sampled_from([(1 << 64) - 1, 0, 1, 0xFF, 0xFFFFFFFF, 0xFFFFFFFF << 32]),
    )
    def start(self, bytes_max: int, key_max: int, hash_mask: int) -> None:
        self.cache = BytesCache(bytes_max, key_max, hash_mask)
        self.key_max = key_max
        self.model: dict[bytes, int] = {}
        self.entries = self.cache.stats()["entries"]
        assert self.entries >= 1

    @rule(key=KEYS, value=st.integers(1, (1 << 31) - 1))
    def put(self, key: bytes, value: int) -> None:
        if self.cache.get(key) is not None:
            return
        before = self.cache.stats()
        self.cache.put(key, value)
        after = self.cache.stats()
        kept = self.cache.get(key)
        if len(key) > self.key_max:
            assert kept is None
            return
        admitted = after["inserts"] - before["inserts"]
        refused = after["refusals"] - before["refusals"]
        assert admitted + refused == 1
        assert kept == (value if admitted else None)
        if admitted:
            self.model[key] = value
        else:
            # Its second sight is admitted, if nothing else of the same place came in between.
            self.cache.put(key, value)
            assert self.cache.get(key) == value
            self.model[key] = value

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        found = self.cache.get(key)
        assert found is None or found == self.model[key]

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        assert all(self.cache.get(key) is None for key in self.model)
        self.model.clear()

    @invariant()
    def never_holds_more_than_fits(self) -> None:
        if not hasattr(self, "cache"):
            return
        stats = self.cache.stats()
        assert stats["bytes"] == stats["allocated_bytes"]
        assert sum(self.cache.get(key) is not None for key in self.model) <= self.entries

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.close() == 0


TestCacheIsADictThatForgets = CacheIsADictThatForgets.TestCase
TestCacheIsADictThatForgets.settings = settings(max_examples=150)


def test_values_seen_once_push_nothing_out() -> None:
    cache = BytesCache(1 << 14, 14)
    keys = [b"kept %d" % i for i in range(cache.stats()["entries"])]
    for i, key in enumerate(keys):
        cache.put(key, i + 1)
    kept = [key for key in keys if cache.get(key) is not None]
    for i in range(500):
        flood = b"once %d" % i
        if cache.get(flood) is None:
            cache.put(flood, 7)
    assert cache.stats()["evictions"] == 0
    assert all(cache.get(key) is not None for key in kept)
    twice = 0
    for i in range(500):
        flood = b"twice %d" % i
        cache.put(flood, 7)
        if cache.get(flood) is None:
            cache.put(flood, 7)
        twice += cache.get(flood) == 7
    assert twice == 500
    assert cache.stats()["evictions"] > 0
    assert cache.close() == 0


def test_wrong_sizes_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="key_max"):
        BytesCache(100, 0)
    cache = BytesCache(100, 8)
    for value in (0, 1 << 31):
        with pytest.raises((ValueError, OverflowError)):
            cache.put(b"key", value)
    assert cache.close() == 0
