# cython: language_level=3, wraparound=False
"""Signals to columns and back: the part of :mod:`vedette.core.wire` that is done per signal.

A column is its distinct values and, for each signal, a number of one of them (16 bits,
little-endian). What repeats within a batch, which is nearly everything but paths and numbers of
processes, is packed, sent, checked and kept once.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from vedette.core.members cimport is_a, member, member_offset

from vedette.core.signal import Signal

cdef enum:
    MISSING = 0xFFFF
    PRIORITIES_MAX = 64

cdef Py_ssize_t SEQ_AT = member_offset(Signal.seq)
cdef Py_ssize_t TIME_AT = member_offset(Signal.time_ns)
cdef Py_ssize_t RULE_AT = member_offset(Signal.rule)
cdef Py_ssize_t PRIORITY_AT = member_offset(Signal.priority)
cdef Py_ssize_t TAGS_AT = member_offset(Signal.tags)
cdef Py_ssize_t ALERT_AT = member_offset(Signal.alert)
cdef Py_ssize_t OUTPUT_AT = member_offset(Signal.output)
cdef Py_ssize_t FIELDS_AT = member_offset(Signal.fields)


cdef inline PyObject* a_signal(list signals, Py_ssize_t at) except NULL:
    cdef PyObject* signal = <PyObject*>signals[at]
    if not is_a(signal, <PyObject*>Signal):
        raise TypeError(f"{<object>signal!r} is no signal")
    return signal


cdef inline void put16(char* data, Py_ssize_t at, uint32_t number) noexcept:
    (<uint8_t*>data)[2 * at] = <uint8_t>(number & 255)
    (<uint8_t*>data)[2 * at + 1] = <uint8_t>(number >> 8)


cdef inline uint32_t get16(const char* data, Py_ssize_t at) noexcept:
    return (<const uint8_t*>data)[2 * at] | (<uint32_t>(<const uint8_t*>data)[2 * at + 1] << 8)


cdef inline void put64(char* data, Py_ssize_t at, uint64_t number) noexcept:
    cdef int i
    for i in range(8):
        (<uint8_t*>data)[8 * at + i] = <uint8_t>(number >> (8 * i))


cdef class _Column:
    cdef object name
    cdef dict places      # value -> its number; bool is an int to a dict, so it has its own
    cdef dict truths
    cdef list values
    cdef bytes index
    cdef char* data
    cdef Py_ssize_t used  # signals that have a number already
    cdef object last
    cdef uint32_t last_at

    def __cinit__(self, name, Py_ssize_t count):
        self.name = name
        self.places = {}
        self.truths = {}
        self.values = []
        self.index = PyBytes_FromStringAndSize(NULL, 2 * count)
        self.data = PyBytes_AS_STRING(self.index)
        self.last = self       # nobody's value

    cdef int put(self, Py_ssize_t at, object value) except -1:
        cdef dict places = self.places
        cdef object kind
        if value is not self.last:
            kind = type(value)
            if kind is bool:
                places = self.truths
            elif not (kind is str or kind is int or value is None):
                raise TypeError(f"field {self.name!r}: {kind.__name__} cannot be sent")
            found = places.get(value)
            if found is None:
                found = places[value] = len(self.values)
                self.values.append(value)
            self.last = value
            self.last_at = found
        while self.used < at:
            put16(self.data, self.used, MISSING)
            self.used += 1
        put16(self.data, at, self.last_at)
        self.used = at + 1
        return 0

    cdef tuple end(self, Py_ssize_t count):
        """Return (values, index); a signal without a value has the number of nil."""
        cdef Py_ssize_t i
        cdef bint lacks = self.used < count
        while self.used < count:
            put16(self.data, self.used, MISSING)
            self.used += 1
        if not lacks:
            for i in range(count):
                if get16(self.data, i) == MISSING:
                    lacks = True
                    break
        if lacks:
            found = self.places.get(None)
            if found is None:
                found = len(self.values)
                self.values.append(None)
            for i in range(count):
                if get16(self.data, i) == MISSING:
                    put16(self.data, i, found)
        return self.values, self.index


def pack(list signals, Py_ssize_t columns_max):
    """Return the columns of signals: seq, time_ns, rules, rule, output, fields.

    seq, time_ns  64-bit numbers, little-endian
    rules, rule   distinct (rule, priority, tags, alert), and 16 bits a signal that say which
    fields        name -> (distinct values, 16 bits a signal that say which)
    Raises TypeError or OverflowError for what cannot be packed, ValueError for too many columns.
    """
    cdef Py_ssize_t count = len(signals)
    cdef Py_ssize_t i, n
    cdef Py_ssize_t walk
    cdef PyObject* key
    cdef PyObject* value
    cdef bytes seq = PyBytes_FromStringAndSize(NULL, 8 * count)
    cdef bytes time_ns = PyBytes_FromStringAndSize(NULL, 8 * count)
    cdef bytes rule = PyBytes_FromStringAndSize(NULL, 2 * count)
    cdef char* seq_data = PyBytes_AS_STRING(seq)
    cdef char* time_data = PyBytes_AS_STRING(time_ns)
    cdef char* rule_data = PyBytes_AS_STRING(rule)
    cdef dict rules = {}
    cdef dict latest = {}     # rule -> its latest entry and number
    cdef list output = []
    cdef dict by_name = {}
    cdef list columns = []
    cdef dict fields
    cdef tuple entry
    cdef object rule_name
    cdef PyObject* signal
    cdef _Column column
    for i in range(count):
        signal = a_signal(signals, i)
        put64(seq_data, i, <object>member(signal, SEQ_AT))
        put64(time_data, i, <object>member(signal, TIME_AT))
        # A rule's signals nearly always have the very objects that its last one had.
        rule_name = <object>member(signal, RULE_AT)
        known = latest.get(rule_name)
        if (
            known is None
            or (<tuple>known)[1] is not <object>member(signal, PRIORITY_AT)
            or (<tuple>known)[2] is not <object>member(signal, TAGS_AT)
            or (<tuple>known)[3] is not <object>member(signal, ALERT_AT)
        ):
            entry = (
                rule_name,
                <object>member(signal, PRIORITY_AT),
                <object>member(signal, TAGS_AT),
                <object>member(signal, ALERT_AT),
            )
            found = rules.get(entry)
            if found is None:
                found = rules[entry] = len(rules)
            known = latest[rule_name] = (*entry, found)
        put16(rule_data, i, (<tuple>known)[4])
        output.append(<object>member(signal, OUTPUT_AT))
        fields = <dict?><object>member(signal, FIELDS_AT)
        walk = 0
        n = 0
        while PyDict_Next(fields, &walk, &key, &value):
            # Signals mostly have the fields of the one before, in the same order.
            if n < len(columns) and (<_Column>columns[n]).name is <object>key:
                column = <_Column>columns[n]
            else:
                found = by_name.get(<object>key)
                if found is None:
                    if len(columns) == columns_max:
                        raise ValueError(f"more than {columns_max} field names in a batch")
                    column = by_name[<object>key] = _Column(<object>key, count)
                    columns.append(column)
                else:
                    column = <_Column>found
            column.put(i, <object>value)
            n += 1
    return seq, time_ns, list(rules), rule, output, {
        column.name: column.end(count) for column in columns
    }


def sift(list signals, int64_t before, int urgent_max):
    """Return the signals of a priority up to urgent_max, and the others, each in their order.

    Raises ValueError where their numbers do not rise above ``before``.
    """
    cdef list urgent = []
    cdef list other = []
    cdef PyObject* signal
    cdef int64_t seq
    cdef int priority
    cdef Py_ssize_t i
    for i in range(len(signals)):
        signal = a_signal(signals, i)
        seq = <object>member(signal, SEQ_AT)
        if seq <= before:
            raise ValueError(f"signal number {seq} after {before}")
        before = seq
        priority = <object>member(signal, PRIORITY_AT)
        if priority <= urgent_max:
            urgent.append(<object>signal)
        else:
            other.append(<object>signal)
    return urgent, other


def tally(list signals, int priorities):
    """Return how many signals there are of each priority, and the earliest time.

    Raises IndexError where a priority is none.
    """
    cdef int64_t counts[PRIORITIES_MAX]
    cdef int priority
    cdef object time_ns
    cdef object earliest = None
    cdef PyObject* signal
    cdef Py_ssize_t i
    if not 0 < priorities <= PRIORITIES_MAX:
        raise IndexError(priorities)
    for priority in range(priorities):
        counts[priority] = 0
    for i in range(len(signals)):
        signal = a_signal(signals, i)
        priority = <object>member(signal, PRIORITY_AT)
        if not 0 <= priority < priorities:
            raise IndexError(priority)
        counts[priority] += 1
        time_ns = <object>member(signal, TIME_AT)
        if earliest is None or time_ns < earliest:
            earliest = time_ns
    return [counts[priority] for priority in range(priorities)], earliest


def chosen(bytes index, Py_ssize_t count):
    """Return the greatest number in an index, -1 where it has not two bytes for each signal."""
    cdef Py_ssize_t i
    cdef uint32_t most = 0
    cdef const char* data = PyBytes_AS_STRING(index)
    if PyBytes_GET_SIZE(index) != 2 * count:
        return -1
    for i in range(count):
        most = max(most, get16(data, i))
    return most


cdef inline int64_t get64(const char* data, Py_ssize_t at) noexcept:
    cdef uint64_t number = 0
    cdef int i
    for i in range(8):
        number |= <uint64_t>(<const uint8_t*>data)[8 * at + i] << (8 * i)
    return <int64_t>number


def extent(bytes numbers):
    """Return the least and the greatest of signed 64-bit numbers, and whether each is above the last.

    Unlike numpy it keeps Python's lock, which costs far more to get back than this takes.
    """
    cdef const char* data = PyBytes_AS_STRING(numbers)
    cdef Py_ssize_t count = PyBytes_GET_SIZE(numbers) // 8
    cdef Py_ssize_t i
    cdef int64_t number, least, most, before
    cdef bint rises = True
    if count == 0:
        raise ValueError("no numbers")
    least = most = before = get64(data, 0)
    for i in range(1, count):
        number = get64(data, i)
        rises &= number > before
        least = min(least, number)
        most = max(most, number)
        before = number
    return least, most, rises


def shown_chars(bytes index, list values):
    """Return how many characters the texts of a column have, each counted as often as it stands.

    The index has been found good by `chosen`.
    """
    cdef Py_ssize_t i
    cdef Py_ssize_t total = 0
    cdef const char* data = PyBytes_AS_STRING(index)
    cdef list lengths = [len(value) if type(value) is str else 0 for value in values]
    for i in range(PyBytes_GET_SIZE(index) // 2):
        total += <Py_ssize_t>lengths[get16(data, i)]
    return total


def fields_at(dict columns, list positions):
    """Return, for each position, the fields of the signal there; nil is left out.

    columns  name -> an object with `values` and `index`
    """
    cdef list found = [{} for _ in positions]
    cdef Py_ssize_t i
    cdef Py_ssize_t count = len(positions)
    cdef const char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t at
    cdef bytes index
    cdef list values
    cdef object value
    for name, column in columns.items():
        index = column.index
        values = column.values
        data = PyBytes_AS_STRING(index)
        size = PyBytes_GET_SIZE(index) // 2
        for i in range(count):
            at = positions[i]
            if not 0 <= at < size:
                raise IndexError(at)
            value = values[<Py_ssize_t>get16(data, at)]
            if value is not None:
                (<dict>found[i])[name] = value
    return found


def memory_bytes(signal):
    """Return what a signal takes in memory, roughly: texts, and a flat part for what is around."""
    cdef Py_ssize_t walk = 0
    cdef PyObject* key
    cdef PyObject* value
    cdef Py_ssize_t size = 512 + len(<str>signal.output)
    cdef dict fields = signal.fields
    while PyDict_Next(fields, &walk, &key, &value):
        size += 64
        if type(<object>value) is str:
            size += len(<str>value)
    return size
