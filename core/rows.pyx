# cython: language_level=3, wraparound=False
"""Signals made of stored columns, and put into the fleet, some hundred nanoseconds each.

Whatever goes through the sequences passes here, after a restart millions at once. So structs are
filled field by field instead of by their constructors, and what a batch's signals share is looked
up once.
"""

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint16_t
from libc.stdlib cimport free, malloc

from vedette.core.members cimport member, member_offset

from vedette.core.fleet import FleetSignal, canonical_address, names_a_host
from vedette.core.signal import Signal

cdef extern from "Python.h":
    object alloc "PyType_GenericAlloc"(PyTypeObject*, Py_ssize_t)
    object new_presized "_PyDict_NewPresized"(Py_ssize_t)
    int set_item "PyDict_SetItem"(object, PyObject*, PyObject*) except -1
    PyObject* item_of "PyDict_GetItemWithError"(object, object) except? NULL

cdef enum:
    FIELDS_MAX = 32
    ADDRESSES_MAX = 65_536

cdef struct Column:
    PyObject* name
    PyObject* values       # a list
    const uint8_t* index   # 16 bits a signal, little-endian
    Py_ssize_t count       # signals

cdef Py_ssize_t FIELDS_AT = member_offset(Signal.fields)
cdef Py_ssize_t TIME_AT = member_offset(Signal.time_ns)


cdef class Maker:
    """Makes structs of a kind, given a value for each of their fields in an order of one's own.

    Raises TypeError for a kind that has other fields, or that the collector of cycles looks at.
    """

    cdef object kind
    cdef int count
    cdef Py_ssize_t places[FIELDS_MAX]

    def __cinit__(self, kind, tuple names):
        cdef int i
        if kind.__struct_config__.gc or sorted(names) != sorted(kind.__struct_fields__):
            raise TypeError(f"{kind.__name__} is not made of {names}")
        if len(names) > FIELDS_MAX:
            raise TypeError(f"{kind.__name__} has more than {FIELDS_MAX} fields")
        self.kind = kind
        self.count = len(names)
        for i in range(self.count):
            self.places[i] = member_offset(getattr(kind, names[i]))

    cdef object make(self, PyObject** values):
        cdef object made = alloc(<PyTypeObject*>self.kind, 0)
        cdef int i
        for i in range(self.count):
            Py_INCREF(<object>values[i])
            (<PyObject**>(<char*><PyObject*>made + self.places[i]))[0] = values[i]
        return made


cdef class Rows:
    """A batch's columns, out of which signals are made.

    maker        takes seq, time_ns, rule, priority, tags, alert, output, fields, id, late, and then
                 the constants
    columns      wire.Columns
    first_id     of the signal at place 0
    released_ns  those up to this time are late
    Raises IndexError for columns of several lengths.
    """

    cdef Maker maker
    cdef object first_id
    cdef int64_t released_ns
    cdef const int64_t[:] seq
    cdef const int64_t[:] time_ns
    cdef const uint16_t[:] rule
    cdef list output
    cdef list entries
    cdef tuple constants
    cdef list kept             # so that what the columns point at stays
    cdef Column* columns
    cdef int used
    cdef Py_ssize_t size

    def __cinit__(
        self, Maker maker, columns, first_id, int64_t released_ns, tuple constants
    ):
        cdef dict fields = columns.fields
        cdef Column* column
        self.maker = maker
        self.first_id = first_id
        self.released_ns = released_ns
        self.constants = constants
        self.seq = columns.seq
        self.time_ns = columns.time_ns
        self.rule = columns.rule
        self.output = columns.output
        self.entries = [
            (entry.name, entry.priority, entry.tags, entry.alert) for entry in columns.rules
        ]
        self.size = len(self.output)
        if not self.size == self.seq.shape[0] == self.time_ns.shape[0] == self.rule.shape[0]:
            raise IndexError("columns of other lengths")
        if 10 + len(constants) != maker.count:
            raise IndexError(f"{maker.count} fields, {10 + len(constants)} values")
        self.kept = []
        self.columns = <Column*>malloc((len(fields) + 1) * sizeof(Column))
        if self.columns == NULL:
            raise MemoryError
        for name, found in fields.items():
            index = <bytes?>found.index
            values = <list?>found.values
            self.kept.append((name, index, values))
            column = &self.columns[self.used]
            column.name = <PyObject*>name
            column.values = <PyObject*>values
            column.index = <const uint8_t*><const char*><bytes>index
            if len(<bytes>index) != 2 * self.size:
                raise IndexError(f"field {name!r} has not 2 bytes for each of {self.size}")
            self.used += 1

    def __dealloc__(self):
        free(self.columns)

    def put(self, const int64_t[:] places, const int64_t[:] positions, list out):
        """Make the signals at some places, and put them at some positions of a list.

        Raises IndexError for a place or a position that there is not.
        """
        cdef Py_ssize_t i, at, place, position
        cdef Py_ssize_t count = places.shape[0]
        cdef int n
        cdef PyObject* values[FIELDS_MAX]
        cdef PyObject* value
        cdef Column* column
        cdef object seq, time_ns, number, late
        cdef dict fields
        cdef tuple entry
        if positions.shape[0] != count:
            raise IndexError("as many positions as places")
        for n in range(<int>len(self.constants)):
            values[10 + n] = <PyObject*>(<object>self.constants[n])
        for i in range(count):
            place = places[i]
            position = positions[i]
            if not (0 <= place < self.size and 0 <= position < len(out)):
                raise IndexError((place, position))
            fields = new_presized(self.used)
            for n in range(self.used):
                column = &self.columns[n]
                at = column.index[2 * place] | (<Py_ssize_t>column.index[2 * place + 1] << 8)
                if at >= PyList_GET_SIZE(<object>column.values):
                    raise IndexError(at)
                value = <PyObject*>PyList_GET_ITEM(<object>column.values, at)
                if value != <PyObject*>None:
                    set_item(fields, column.name, value)
            if self.rule[place] >= len(self.entries):
                raise IndexError(self.rule[place])
            entry = <tuple>self.entries[self.rule[place]]
            seq = self.seq[place]
            time_ns = self.time_ns[place]
            number = self.first_id + place
            late = self.time_ns[place] <= self.released_ns
            values[0] = <PyObject*>seq
            values[1] = <PyObject*>time_ns
            for n in range(4):
                values[2 + n] = <PyObject*>(<object>entry[n])
            values[6] = <PyObject*>(<object>self.output[place])
            values[7] = <PyObject*>fields
            values[8] = <PyObject*>number
            values[9] = <PyObject*>late
            out[position] = self.maker.make(values)


cdef Maker in_fleet = Maker(
    FleetSignal,
    ("host_id", "host_name", "boot", "time_ns", "peer_host", "labels", "signal"),
)


def fleet_signals(list stored, dict names, dict labels, dict known, by_address, behind):
    """Return stored signals as the sequences see them.

    stored       have host_id, boot_id, and what signals have
    names, labels  of hosts by their ids
    known        address as it was written -> in its one spelling, None where it names no host;
                 more are added
    by_address   has the addresses that hosts have
    behind       returns the name of who had an address at a time
    """
    cdef Py_ssize_t i, count = len(stored)
    cdef list made = [None] * count
    cdef PyObject* values[7]
    cdef PyObject* signal
    cdef object host_id = None, before = None
    cdef object host_name = None, host_labels = None, boot = None
    cdef object address, peer, time_ns, fields, one
    if not count:
        return made
    cdef Py_ssize_t host_at = member_offset(type(stored[0]).host_id)
    cdef Py_ssize_t boot_at = member_offset(type(stored[0]).boot_id)
    kind = type(stored[0])
    for i in range(count):
        one = stored[i]
        if type(one) is not kind:
            raise TypeError("signals of several kinds")
        signal = <PyObject*>one
        host_id = <object>member(signal, host_at)
        if host_id is not before:
            before = host_id
            host_name = names.get(host_id, host_id)
            host_labels = labels.get(host_id)
            if host_labels is None:
                host_labels = {}
        fields = <object>member(signal, FIELDS_AT)
        time_ns = <object>member(signal, TIME_AT)
        address = _address(fields, "fd.rip", known)
        if address is None:
            address = _address(fields, "login.ip", known)
        peer = None
        if address is not None and address in by_address:
            peer = behind(address, time_ns)
        boot = <object>member(signal, boot_at)
        values[0] = <PyObject*>host_id
        values[1] = <PyObject*>host_name
        values[2] = <PyObject*>boot
        values[3] = <PyObject*>time_ns
        values[4] = <PyObject*>peer
        values[5] = <PyObject*>host_labels
        values[6] = signal
        made[i] = in_fleet.make(values)
    return made


cdef object _address(dict fields, name, dict known):
    """Return a field's address where it can name a host of the fleet (fleet.remote_address)."""
    cdef PyObject* value = item_of(fields, name)
    cdef PyObject* found
    if value == NULL or type(<object>value) is not str:
        return None
    found = item_of(known, <object>value)
    if found != NULL:
        return <object>found
    text = canonical_address(<object>value)
    if text is not None and not names_a_host(text):
        text = None
    if len(known) >= ADDRESSES_MAX:
        known.clear()
    known[<object>value] = text
    return text
