"""The sequence tables as C structs; :mod:`vedette.core.correlator` says what they mean.

A partial match is a *node*: 64 bytes and 8 for each value that later joins need, in an array per
sequence; nodes name one another by their place in it. After each step but the last stands a table
of nodes with two sets of chains: by all values (the class: of interchangeable nodes the greatest
is kept), and by those values that the next step's joins compare; one set where that is the same. A counting step has *rings*: per
group of values the last signals, each an *entry* with the node that stood before it. Nodes and rings also
hang in a wheel by the time of their start, from where they expire, or go when the bound is
reached; a start that has grown since is seen there. Each is on the account of the host that sent
the signal of which it was made; at the bound those hosts lose whose accounts are the largest. Signals are numbered as they come, which is
their order; those that nodes name have a *slot*, or are a ring's entry, so that naming one does not touch
the Python object. All are items of arrays that grow (slabs): no memory is asked for in steady state,
and none is lost between small blocks.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from vedette.core.mem cimport Heap, heap_del, heap_grow, heap_new
from vedette.core.members cimport is_a, member, member_offset

from collections import Counter, deque

from vedette.core.fleet import FleetSignal, canonical_address, find, holds, pseudo_reader, value_of
from vedette.core.sequence import OF_SEQUENCE
from vedette.core.sequence_plan import plan as sequence_plan
from vedette.core.signal import Signal

cdef extern from "Python.h":
    void incref "Py_INCREF"(PyObject*) noexcept
    void decref "Py_XDECREF"(PyObject*) noexcept
    Py_ssize_t hash_of "PyObject_Hash"(PyObject*) except -1
    PyObject* item_of "PyDict_GetItemWithError"(object, object) except? NULL

cdef extern from *:
    """
    static inline void prefetch(const void* address) {
        __builtin_prefetch(address);
        __builtin_prefetch((const char*)address + 64);
    }

    /* A text's letters begin 48 bytes from where it begins, often in the line behind. */
    static inline void prefetch_text(const void* address) {
        __builtin_prefetch(address);
        __builtin_prefetch((const char*)address + 56);
    }

    static inline void prefetch_line(const void* address) {
        __builtin_prefetch(address);
    }

    static inline void prefetch_items(PyObject* tags) {
        if (PyTuple_CheckExact(tags)) {
            Py_ssize_t i, size = PyTuple_GET_SIZE(tags);
            for (i = 0; i < size && i < 4; i++)
                __builtin_prefetch(PyTuple_GET_ITEM(tags, i));
        }
    }

    /* Equal: most are ASCII texts, for which Python's general way is many calls. */
    static inline int same(PyObject* one, PyObject* two) {
        if (one == two)
            return 1;
        if (PyUnicode_CheckExact(one) && PyUnicode_CheckExact(two)
            && PyUnicode_IS_COMPACT_ASCII(one) && PyUnicode_IS_COMPACT_ASCII(two)) {
            Py_ssize_t length = PyUnicode_GET_LENGTH(one);
            return length == PyUnicode_GET_LENGTH(two)
                && memcmp((PyASCIIObject*)one + 1, (PyASCIIObject*)two + 1, length) == 0;
        }
        return PyObject_RichCompareBool(one, two, Py_EQ);
    }

    /* Two signals of one rule nearly always have the same tags, in objects of their own. */
    static int same_tags(PyObject* one, PyObject* two) {
        Py_ssize_t i, size;
        int equal = 1;
        if (one == two)
            return 1;
        if (!PyTuple_CheckExact(one) || !PyTuple_CheckExact(two))
            return PyObject_RichCompareBool(one, two, Py_EQ);
        size = PyTuple_GET_SIZE(one);
        if (size != PyTuple_GET_SIZE(two))
            return 0;
        for (i = 0; i < size && equal > 0; i++)
            equal = same(PyTuple_GET_ITEM(one, i), PyTuple_GET_ITEM(two, i));
        return equal;
    }

    static inline void prefetch_keys(PyObject* fields) {
        if (PyDict_CheckExact(fields)) {
            const char* keys = (const char*)((PyDictObject*)fields)->ma_keys;
            prefetch(keys);
            __builtin_prefetch(keys + 128);
        }
    }
    """
    void prefetch(const void*) noexcept nogil
    void prefetch_text(const void*) noexcept nogil
    void prefetch_line(const void*) noexcept nogil
    void prefetch_items(PyObject*) noexcept nogil
    void prefetch_keys(PyObject*) noexcept nogil
    bint same_tags(PyObject*, PyObject*) except -1
    bint same(PyObject*, PyObject*) except -1

cdef enum:
    SPOKES = 256          # of a wheel; the window spans at most 129 of them
    PLAIN = 0             # where a field's value is read: the signal's own fields
    ADDRESS = 1           # the same, brought to one spelling
    HOST = 2
    PEER = 3
    OTHER = 4             # through its reader
    AHEAD = 22            # signals that are looked at before their turn
    CONTEXTS = 16         # more than those whose values are read before it
    GLANCES = 4           # look-ups that are prepared, of each
    HOSTS = 65536         # accounts; the hosts that come last share one
    CONDITIONS = 1024     # whose answers are kept for a signal
    IN_RINGS = 1
    IN_GROUPS = 2
    IN_CLASSES = 3

cdef struct Link:
    int64_t start_ns      # the match's start, or that of a ring's newest entry
    uint32_t prev
    uint32_t next
    uint32_t hash         # of all values
    uint16_t host         # on whose account it is
    uint8_t spoke         # that it hangs on, which may be one of an earlier start
    uint8_t step          # position of the step

cdef struct Node:
    Link link
    uint64_t start_no     # of the first signal of all
    uint32_t taken        # the signal's slot; of a counting step, a place in `taken`
    uint32_t before       # the node up to the step before; 0: none
    uint32_t refs         # nodes and entries that name this one, and 1 while it is in a table
    uint32_t group_hash   # of those that the next step compares
    uint32_t class_next   # of the same chain; also of the free ones
    uint32_t group_prev
    uint32_t group_next
    PyObject* values[1]

cdef struct Slot:
    PyObject* signal
    uint64_t no
    uint32_t refs         # nodes that name it
    uint32_t next         # of the free ones

cdef struct Entry:
    PyObject* signal
    uint64_t no
    int64_t start_ns      # of the match that it would begin or go on with
    PyObject* value       # of the distinct field, or NULL
    uint32_t refs         # nodes that name it, and 1 while it is in a ring
    uint32_t before       # node, while it is in a ring; 0: none
    uint32_t next         # that came after it; also of the free ones
    uint32_t hash         # of value

cdef struct Ring:
    Link link
    uint32_t oldest       # entry
    uint32_t newest
    uint32_t used         # 0: the ring is free
    uint32_t chain_next   # of the same chain; also of the free ones
    PyObject* values[1]   # of the step's `by`, then of the node before

cdef struct Slab:
    char* data
    size_t stride
    size_t free_at        # offset in a free item of the place of the next free one
    uint32_t used         # ever used, with place 0, which means none
    uint32_t capacity
    uint32_t free_        # first free place; 0: none
    uint32_t linked       # in the wheel

cdef struct Wheel:
    uint32_t head[SPOKES]
    uint32_t tail[SPOKES]
    int64_t at            # what started in ticks before has gone
    int64_t oldest        # nothing hangs in ticks before

cdef struct Chains:
    uint32_t* classes     # NULL where the next step compares all values: a group is a class then
    uint32_t* groups      # NULL: of rings
    uint32_t size         # a power of two
    uint32_t used

cdef struct Plan:
    int count
    int distinct          # field, or -1
    int64_t gap_ns        # -1: none
    bint gap_follows      # the next step has one
    int own_count
    int by_count
    int required_count
    int carried_count
    int probe_count
    int before_count      # values of the node before
    int* own              # fields of this step's joins
    int* by               # fields
    int* needed           # fields that later joins need
    int* required         # of these, what steps' joins need; an absence's may be missing
    int* carried          # each value: >= 0: the place before; < 0: ~place in needed
    int* probe            # places in carried that the next step compares
    # Each needed value: where an equal one stands already, of a counting step in `by`, else in the
    # values of the node before; -1: nowhere.
    int* known
    Chains table
    Chains rings
    Slab taken            # of a counting step: what each node took, `count` places of entries
    int condition         # number; -1: none


cdef struct Glance:
    PyObject* tables      # borrowed; NULL: nothing more
    int position
    int kind              # where is looked: IN_RINGS, …
    uint32_t hash
    uint32_t place        # of what is first of the chain there
    bint is_deeper        # it is at the look-up that what was found leads to


cdef Py_ssize_t SIGNAL_AT = member_offset(FleetSignal.signal)
cdef Py_ssize_t TIME_AT = member_offset(FleetSignal.time_ns)
cdef Py_ssize_t HOST_ID_AT = member_offset(FleetSignal.host_id)
cdef Py_ssize_t HOST_NAME_AT = member_offset(FleetSignal.host_name)
cdef Py_ssize_t PEER_HOST_AT = member_offset(FleetSignal.peer_host)
cdef Py_ssize_t RULE_AT = member_offset(Signal.rule)
cdef Py_ssize_t TAGS_AT = member_offset(Signal.tags)
cdef Py_ssize_t FIELDS_AT = member_offset(Signal.fields)


cdef inline uint32_t hash_values(PyObject** values, int count) except? 0xFFFFFFFF:
    cdef uint64_t mixed = 0x9E3779B97F4A7C15u
    cdef int i
    for i in range(count):
        mixed = (mixed ^ <uint64_t>hash_of(values[i])) * 0xFF51AFD7ED558CCDu
        mixed ^= mixed >> 32
    return <uint32_t>mixed


@cython.no_gc_clear
cdef class Fields:
    """Values of the signal at hand and of those to come, each read once however many ask.

    A signal has a place in a circle of CONTEXTS for as long as none that comes later takes it.
    """

    cdef dict places
    cdef list names
    cdef list readers
    cdef int kinds[1024]
    cdef int at                   # the context of the signal at hand
    cdef uint64_t now
    cdef PyObject* signals[CONTEXTS]
    cdef PyObject* own[CONTEXTS]  # of the signal's fields, borrowed from it
    cdef uint64_t begun[CONTEXTS]
    cdef dict hosts               # host id -> number
    cdef list host_ids
    cdef int host[CONTEXTS]       # number of the signal's host; -1: not asked for yet
    cdef dict conditions          # condition -> number
    cdef uint64_t judged[CONTEXTS][CONDITIONS]  # twice `begun`, and 1 more where it is true
    cdef PyObject* value[CONTEXTS][1024]
    cdef uint64_t stamp[CONTEXTS][1024]

    def __cinit__(self):
        self.places = {}
        self.names = []
        self.readers = []
        self.conditions = {}
        memset(self.judged, 0, sizeof(self.judged))
        self.hosts = {}
        self.host_ids = []
        memset(self.signals, 0, sizeof(self.signals))
        memset(self.value, 0, sizeof(self.value))
        memset(self.stamp, 0, sizeof(self.stamp))

    def __dealloc__(self):
        cdef int i, context
        for context in range(CONTEXTS):
            decref(self.signals[context])
            for i in range(1024):
                decref(self.value[context][i])

    cdef int place(self, name) except -1:
        """Return the number of a field."""
        if name not in self.places:
            if len(self.names) == 1024:
                raise ValueError("the sequences name more than 1024 different fields")
            if name == "host.name":
                kind = HOST
            elif name == "peer.host":
                kind = PEER
            elif pseudo_reader(name) is not None:
                kind = OTHER
            else:
                kind = ADDRESS if find(name).type in ("ip", "net") else PLAIN
            self.places[name] = len(self.names)
            self.names.append(name)
            self.readers.append(value_of(name))
            self.kinds[len(self.names) - 1] = kind
        return self.places[name]

    cdef bint begin(self, int context, PyObject* signal) noexcept:
        """Give a signal a context, unless it has it already (False); what was there goes."""
        self.at = context
        if self.signals[context] == signal:
            return False
        incref(signal)
        decref(self.signals[context])
        self.signals[context] = signal
        self.own[context] = member(member(signal, SIGNAL_AT), FIELDS_AT)
        self.now += 1
        self.begun[context] = self.now
        self.host[context] = -1
        return True

    cdef int condition(self, condition) except -2:
        """Return the number of a condition, so that equal ones are judged once a signal; -1: none.
        """
        if condition is None:
            return -1
        if condition not in self.conditions and len(self.conditions) == CONDITIONS:
            return CONDITIONS
        return self.conditions.setdefault(condition, len(self.conditions))

    cdef inline bint is_true(self, int number, condition) except -1:
        """Tell whether a condition is true of the signal."""
        cdef uint64_t begun
        if number < 0:
            return True
        if number == CONDITIONS:
            return holds(condition, <object>self.signals[self.at])
        begun = self.begun[self.at]
        if self.judged[self.at][number] >> 1 != begun:
            self.judged[self.at][number] = (
                begun << 1 | holds(condition, <object>self.signals[self.at])
            )
        return self.judged[self.at][number] & 1

    cdef inline int host_now(self) except -1:
        """Return the number of the signal's host."""
        if self.host[self.at] < 0:
            self.host[self.at] = self._host()
        return self.host[self.at]

    cdef int _host(self) except -1:
        cdef object name = <object>member(self.signals[self.at], HOST_ID_AT)
        found = self.hosts.get(name)
        if found is None:
            found = min(len(self.hosts), HOSTS - 1)
            self.hosts[name] = found
            if found == len(self.host_ids):
                self.host_ids.append(name)
        return found

    cdef inline PyObject* get(self, int place) except NULL:
        """Return a value, borrowed while the signal has its context; None: missing."""
        if self.stamp[self.at][place] == self.begun[self.at]:
            return self.value[self.at][place]
        return self._read(place)

    cdef PyObject* _read(self, int place) except NULL:
        cdef PyObject* found
        cdef PyObject* signal = self.signals[self.at]
        cdef object value = None
        cdef int kind
        kind = self.kinds[place]
        if kind <= ADDRESS:
            found = item_of(<object>self.own[self.at], self.names[place])
            if found != NULL:
                value = <object>found
                if kind == ADDRESS:
                    value = canonical_address(value) if isinstance(value, str) else None
                elif not isinstance(value, (str, int)):
                    value = None
        elif kind == HOST:
            value = <object>member(signal, HOST_NAME_AT)
        elif kind == PEER:
            value = <object>member(signal, PEER_HOST_AT)
        else:
            value = self.readers[place](<object>signal)
        found = <PyObject*>value
        incref(found)
        decref(self.value[self.at][place])
        self.value[self.at][place] = found
        self.stamp[self.at][place] = self.begun[self.at]
        return found


cdef class Absent:
    """One absence: the latest signal that it took, per values of its joins."""

    cdef int after
    cdef int until
    cdef object condition
    cdef list own         # fields
    cdef dict places      # position of a step -> places of the joined values in its nodes
    cdef dict latest      # values -> (number, time, host), the latest last


@cython.no_gc_clear
cdef class Tables:
    """The tables of one sequence, its steps in one of the orders that they may come in."""

    cdef Heap* heap
    cdef Fields fields
    cdef readonly object sequence
    cdef tuple arrangement
    cdef list conditions
    cdef list firsts              # per step None, or (name, time, places of fields)
    cdef object seen
    cdef list absences
    cdef Plan* plans
    cdef int steps
    cdef int absent_after         # index of the absence after the last step, or -1
    cdef int64_t within_ns
    cdef int64_t after_ns
    cdef int64_t width_ns         # of a spoke of the wheels
    cdef uint32_t bound
    cdef readonly uint64_t evicted
    cdef uint32_t counted         # entries of all rings
    cdef uint32_t* accounts       # per host, how many nodes and rings' entries
    cdef uint32_t accounts_size
    cdef readonly dict evicted_of  # number of a host -> how many of its account went
    cdef Slab nodes
    cdef Slab ringed
    cdef Slab slots
    cdef Slab entries
    cdef Wheel node_wheel
    cdef Wheel ring_wheel
    cdef bint started
    cdef int64_t now_ns
    cdef uint64_t now_no
    cdef PyObject* now
    cdef uint32_t now_slot        # of the signal at hand; 0: nothing names it yet
    cdef uint32_t best            # the completed match of this signal
    cdef list fresh               # the completed matches that an absence may still undo
    cdef object pending           # (number, time) of the last signal, and the matches
    cdef list sized               # (address, bytes) of the arrays of plans

    def __cinit__(self):
        self.absent_after = -1
        self.fresh = []
        self.pending = deque()
        self.sized = []
        self.conditions = []
        self.firsts = []
        self.absences = []

    cdef int prepare(
        self, Heap* heap, Fields fields, sequence, tuple arrangement, uint32_t bound, seen
    ) except -1:
        cdef int position
        cdef Plan* plan
        cdef Node node
        cdef Slot slot
        cdef Entry entry
        cdef Ring ring
        self.seen = seen
        self.heap = heap
        self.fields = fields
        self.sequence = sequence
        self.arrangement = arrangement
        self.within_ns = sequence.within_ns
        self.after_ns = sequence.afterwards_ns
        self.width_ns = self.within_ns // 128 + 1
        self.bound = bound
        self.steps = len(arrangement)
        self.plans = <Plan*>self._new(self.steps * sizeof(Plan))
        self.evicted_of = {}
        steps, absences = sequence_plan(sequence, arrangement)
        before = ()
        most_values = 0
        most_ring_values = 0
        for position, planned in enumerate(steps):
            step = planned.step
            carried = planned.carried
            needed = [name for origin, name in carried if origin == position]
            plan = &self.plans[position]
            plan.count = step.count
            plan.distinct = -1 if step.distinct is None else fields.place(step.distinct)
            plan.gap_ns = -1 if step.gap_ns is None else step.gap_ns
            plan.gap_follows = (
                position + 1 < len(steps) and steps[position + 1].step.gap_ns is not None
            )
            plan.own_count = len(planned.joins)
            plan.own = self._ints([fields.place(own) for own, _, _ in planned.joins])
            plan.by_count = len(step.by)
            plan.by = self._ints([fields.place(name) for name in step.by])
            plan.needed = self._ints([fields.place(name) for name in needed])
            plan.required_count = len(planned.required)
            plan.required = self._ints([fields.place(name) for name in planned.required])
            plan.carried_count = len(carried)
            plan.carried = self._ints([
                ~needed.index(item[1]) if item[0] == position else before.index(item)
                for item in carried
            ])
            plan.probe_count = len(planned.probe)
            plan.probe = self._ints([carried.index(item) for item in planned.probe])
            plan.before_count = len(before)
            own = [name for name, _, _ in planned.joins]
            if step.count > 1:
                known = [step.by.index(name) for name in needed]
            else:
                known = [
                    self.plans[position - 1].probe[own.index(name)] if name in own else -1
                    for name in needed
                ]
            plan.known = self._ints(known)
            most_values = max(most_values, len(carried))
            if step.count > 1:
                plan.taken.stride = step.count * sizeof(uint32_t)
                most_ring_values = max(most_ring_values, len(step.by) + len(before))
            self._chains_new(&plan.table, set(planned.probe) != set(carried), True)
            self._chains_new(&plan.rings, True, False)
            self.conditions.append(step.condition)
            plan.condition = fields.condition(step.condition)
            first = step.first_seen
            self.firsts.append(
                None if first is None
                else (step.seen_as, first.for_ns, [fields.place(name) for name in first.fields])
            )
            before = carried
        for number, planned in enumerate(absences):
            self.absences.append(self._absent(planned, steps))
            if planned.absence.until == self.steps:
                self.absent_after = number
        self.nodes.stride = sizeof(Node) - sizeof(PyObject*) + most_values * sizeof(PyObject*)
        self.slots.stride = sizeof(Slot)
        self.entries.stride = sizeof(Entry)
        self.ringed.stride = (
            sizeof(Ring) - sizeof(PyObject*) + most_ring_values * sizeof(PyObject*)
        )
        self.nodes.free_at = <char*>&node.class_next - <char*>&node
        self.slots.free_at = <char*>&slot.next - <char*>&slot
        self.entries.free_at = <char*>&entry.next - <char*>&entry
        self.ringed.free_at = <char*>&ring.chain_next - <char*>&ring
        return 0

    cdef Absent _absent(self, planned, steps):
        cdef int position
        absence = planned.absence
        made = Absent()
        made.after = absence.after
        made.until = absence.until
        made.condition = absence.step.condition
        made.own = [self.fields.place(own) for own, _, _ in planned.joins]
        made.places = {
            position: [
                steps[position].carried.index((origin, name)) for _, origin, name in planned.joins
            ]
            for position in range(absence.after, min(absence.until, self.steps))
        }
        made.latest = {}
        return made

    def __dealloc__(self):
        cdef int position
        cdef uint32_t place
        cdef Node* node
        cdef Ring* ring
        if self.plans == NULL:
            return
        # All at once: whom a node names goes too, so counts of names need no care.
        for place in range(1, self.nodes.used):
            node = self._node(place)
            if node.refs:
                self._forget(node)
        for place in range(1, self.ringed.used):
            ring = self._ring(place)
            if ring.used:
                self._forget_ring(ring)
        for position in range(self.steps):
            self._slab_del(&self.plans[position].taken)
            self._chains_del(&self.plans[position].table)
            self._chains_del(&self.plans[position].rings)
        heap_del(self.heap, self.accounts, self.accounts_size * sizeof(uint32_t))
        self._slab_del(&self.slots)
        self._slab_del(&self.entries)
        self._slab_del(&self.nodes)
        self._slab_del(&self.ringed)
        for address, size in self.sized:
            heap_del(self.heap, <void*><size_t>address, size)

    # Memory.

    cdef void* _new(self, size_t size) except NULL:
        """Return an array that lives as long as the tables."""
        cdef void* made = heap_new(self.heap, size)
        if made == NULL:
            raise MemoryError
        self.sized.append((<size_t>made, size))
        return made

    cdef int* _ints(self, list values) except NULL:
        cdef int i
        cdef int* made = <int*>self._new((len(values) + 1) * sizeof(int))
        for i in range(len(values)):
            made[i] = values[i]
        return made

    cdef int _chains_new(self, Chains* chains, bint has_classes, bint has_groups) except -1:
        chains.size = 16
        if has_classes:
            chains.classes = <uint32_t*>heap_new(self.heap, 16 * sizeof(uint32_t))
        if has_groups:
            chains.groups = <uint32_t*>heap_new(self.heap, 16 * sizeof(uint32_t))
        if has_classes > (chains.classes != NULL) or has_groups > (chains.groups != NULL):
            raise MemoryError
        return 0

    cdef inline uint32_t* _class_chains(self, Chains* chains) noexcept:
        return chains.groups if chains.classes == NULL else chains.classes

    cdef uint32_t _class_hash(self, Plan* plan, PyObject** values) except? 0xFFFFFFFF:
        """Return the hash of all values that a node carries."""
        if plan.table.classes == NULL:
            return self._group_hash(plan, values)
        return hash_values(values, plan.carried_count)

    cdef uint32_t _group_hash(self, Plan* plan, PyObject** values) except? 0xFFFFFFFF:
        """Return the hash of those that the next step compares."""
        cdef PyObject* probe[1024]
        cdef int i
        for i in range(plan.probe_count):
            probe[i] = values[plan.probe[i]]
        return hash_values(probe, plan.probe_count)

    cdef void _chains_del(self, Chains* chains) noexcept:
        heap_del(self.heap, chains.classes, chains.size * sizeof(uint32_t))
        heap_del(self.heap, chains.groups, chains.size * sizeof(uint32_t))

    cdef void _slab_del(self, Slab* slab) noexcept:
        heap_del(self.heap, slab.data, slab.capacity * slab.stride)

    cdef uint32_t _payer(self) except 0xFFFFFFFF:
        """Return the number of the signal's host, which has an account from now on."""
        cdef uint32_t host = self.fields.host_now()
        cdef uint32_t larger
        cdef void* accounts
        if host >= self.accounts_size:
            larger = max(host + 1, 2 * self.accounts_size, 16)
            accounts = heap_grow(
                self.heap,
                self.accounts,
                self.accounts_size * sizeof(uint32_t),
                larger * sizeof(uint32_t),
            )
            if accounts == NULL:
                raise MemoryError
            self.accounts = <uint32_t*>accounts
            memset(
                &self.accounts[self.accounts_size],
                0,
                (larger - self.accounts_size) * sizeof(uint32_t),
            )
            self.accounts_size = larger
        return host

    cdef uint32_t _take(self, Slab* slab) except 0:
        """Return the place of a zeroed item."""
        cdef uint32_t place = slab.free_
        cdef uint32_t larger
        cdef char* data
        if place:
            slab.free_ = (<uint32_t*>(slab.data + place * slab.stride + slab.free_at))[0]
        else:
            if slab.used >= slab.capacity:
                larger = max(16, slab.capacity + slab.capacity // 16)
                data = <char*>heap_grow(
                    self.heap, slab.data, slab.capacity * slab.stride, larger * slab.stride
                )
                if data == NULL:
                    raise MemoryError
                slab.data = data
                slab.capacity = larger
            slab.used = max(slab.used, 1)
            place = slab.used
            slab.used += 1
        memset(slab.data + place * slab.stride, 0, slab.stride)
        return place

    cdef void _give(self, Slab* slab, uint32_t place) noexcept:
        """Make an item free."""
        (<uint32_t*>(slab.data + place * slab.stride + slab.free_at))[0] = slab.free_
        slab.free_ = place

    cdef inline Node* _node(self, uint32_t place) noexcept:
        return <Node*>(self.nodes.data + <size_t>place * self.nodes.stride)

    cdef inline Ring* _ring(self, uint32_t place) noexcept:
        return <Ring*>(self.ringed.data + <size_t>place * self.ringed.stride)

    cdef inline Slot* _slot(self, uint32_t place) noexcept:
        return <Slot*>(self.slots.data + <size_t>place * self.slots.stride)

    cdef inline Entry* _entry(self, uint32_t place) noexcept:
        return <Entry*>(self.entries.data + <size_t>place * self.entries.stride)

    cdef inline uint32_t* _taken(self, Plan* plan, uint32_t place) noexcept:
        """Return the places of the entries that a node of a counting step took."""
        return <uint32_t*>(plan.taken.data + <size_t>place * plan.taken.stride)

    cdef uint64_t _last_no(self, Node* node) noexcept:
        """Return the number of the last signal that a node took."""
        cdef Plan* plan = &self.plans[node.link.step]
        if plan.count == 1:
            return self._slot(node.taken).no
        return self._entry(self._taken(plan, node.taken)[plan.count - 1]).no

    cdef PyObject* _last_signal(self, Node* node) noexcept:
        cdef Plan* plan = &self.plans[node.link.step]
        if plan.count == 1:
            return self._slot(node.taken).signal
        return self._entry(self._taken(plan, node.taken)[plan.count - 1]).signal

    cdef uint32_t _slot_now(self) except 0:
        """Name the signal at hand once more."""
        cdef Slot* slot
        if not self.now_slot:
            self.now_slot = self._take(&self.slots)
            slot = self._slot(self.now_slot)
            slot.signal = self.now
            slot.no = self.now_no
            incref(self.now)
        self._slot(self.now_slot).refs += 1
        return self.now_slot

    cdef void _let_go(self, uint32_t place) noexcept:
        """Take one name of a signal away; the last lets it go."""
        cdef Slot* slot = self._slot(place)
        slot.refs -= 1
        if slot.refs == 0:
            decref(slot.signal)
            self._give(&self.slots, place)
            if place == self.now_slot:
                self.now_slot = 0

    cdef void _let_entry_go(self, uint32_t place) noexcept:
        """The same of a ring's entry."""
        cdef Entry* entry = self._entry(place)
        entry.refs -= 1
        if entry.refs == 0:
            decref(entry.signal)
            self._give(&self.entries, place)

    cdef void _forget(self, Node* node) noexcept:
        """Let go of what a node names but other nodes."""
        cdef int i
        cdef Plan* plan = &self.plans[node.link.step]
        cdef uint32_t* taken
        for i in range(plan.carried_count):
            decref(node.values[i])
        if plan.count == 1:
            self._let_go(node.taken)
        else:
            taken = self._taken(plan, node.taken)
            for i in range(plan.count):
                self._let_entry_go(taken[i])
            self._give(&plan.taken, node.taken)

    cdef void _drop(self, uint32_t place) noexcept:
        """Take one name of a node away; the last frees it, and what it names."""
        cdef Node* node
        cdef uint32_t before
        while place:
            node = self._node(place)
            node.refs -= 1
            if node.refs:
                return
            before = node.before
            self._forget(node)
            self._give(&self.nodes, place)
            place = before

    cdef void _forget_ring(self, Ring* ring) noexcept:
        """Let go of what a ring names but nodes."""
        cdef int i
        cdef uint32_t place = ring.oldest, following
        cdef Entry* entry
        cdef Plan* plan = &self.plans[ring.link.step]
        while place:
            entry = self._entry(place)
            following = entry.next
            decref(entry.value)
            self._let_entry_go(place)
            place = following
        for i in range(plan.by_count + plan.before_count):
            decref(ring.values[i])
        ring.used = 0

    # Wheels.

    cdef void _hang(self, Slab* slab, Wheel* wheel, uint32_t place) noexcept:
        cdef Link* link = <Link*>(slab.data + <size_t>place * slab.stride)
        cdef int64_t tick = link.start_ns // self.width_ns
        cdef int spoke = <int>(tick & (SPOKES - 1))
        link.spoke = spoke
        link.next = 0
        link.prev = wheel.tail[spoke]
        if link.prev:
            (<Link*>(slab.data + <size_t>link.prev * slab.stride)).next = place
        else:
            wheel.head[spoke] = place
        wheel.tail[spoke] = place
        if tick < wheel.oldest or not slab.linked:
            wheel.oldest = tick
        slab.linked += 1

    cdef void _unhang(self, Slab* slab, Wheel* wheel, uint32_t place) noexcept:
        cdef Link* link = <Link*>(slab.data + <size_t>place * slab.stride)
        cdef int spoke = link.spoke
        if link.prev:
            (<Link*>(slab.data + <size_t>link.prev * slab.stride)).next = link.next
        else:
            wheel.head[spoke] = link.next
        if link.next:
            (<Link*>(slab.data + <size_t>link.next * slab.stride)).prev = link.prev
        else:
            wheel.tail[spoke] = link.prev
        slab.linked -= 1

    cdef bint _rehang(self, Slab* slab, Wheel* wheel, uint32_t place) noexcept:
        """Hang something anew if its start has grown; return whether it has."""
        cdef Link* link = <Link*>(slab.data + <size_t>place * slab.stride)
        if (link.start_ns // self.width_ns) & (SPOKES - 1) == link.spoke:
            return False
        self._unhang(slab, wheel, place)
        self._hang(slab, wheel, place)
        return True

    cdef int _expire(self, int64_t since_ns) except -1:
        """Drop what started in ticks that are wholly before a time."""
        cdef int64_t until = since_ns // self.width_ns
        cdef int spoke
        cdef uint32_t place
        if not self.started:
            self.started = True
            self.node_wheel.at = self.ring_wheel.at = until
            return 0
        if self.node_wheel.at >= until:
            return 0
        self.node_wheel.at = max(self.node_wheel.at, until - SPOKES)
        while self.node_wheel.at < until:
            spoke = <int>(self.node_wheel.at & (SPOKES - 1))
            # What is hung anew goes to a later spoke.
            while self.node_wheel.head[spoke]:
                place = self.node_wheel.head[spoke]
                if not self._rehang(&self.nodes, &self.node_wheel, place):
                    self._remove(place)
            while self.ring_wheel.head[spoke]:
                place = self.ring_wheel.head[spoke]
                if not self._rehang(&self.ringed, &self.ring_wheel, place):
                    self._remove_ring(place)
            self.node_wheel.at += 1
        self.ring_wheel.at = self.node_wheel.at
        return 0

    cdef int _evict(self) except -1:
        """Let go until the bound is kept: of the hosts with the largest accounts, what is oldest.

        A host whose account is at most what the bound would give each loses nothing, so whoever
        floods the tables floods his own account. Some more than needed goes at once, so that the
        walk through the wheels is not for each.
        """
        cdef uint32_t held = self.nodes.linked + self.counted
        cdef int64_t left
        cdef int64_t tick
        cdef uint32_t host, place, following
        cdef dict excess
        if held <= self.bound:
            return 0
        left = held - self.bound + self.bound // 16
        excess = self._excess(left)
        tick = min(
            self.node_wheel.oldest if self.nodes.linked else self.ring_wheel.oldest,
            self.ring_wheel.oldest if self.ringed.linked else self.node_wheel.oldest,
        )
        while left > 0 and (self.nodes.linked or self.ringed.linked):
            place = self.ring_wheel.head[tick & (SPOKES - 1)]
            while place and left > 0:
                following = self._ring(place).link.next
                host = self._ring(place).link.host
                if not self._rehang(&self.ringed, &self.ring_wheel, place):
                    if excess.get(host, 0) > 0:
                        left -= self._give_up(host, self._ring(place).used, excess)
                        self._remove_ring(place)
                place = following
            place = self.node_wheel.head[tick & (SPOKES - 1)]
            while place and left > 0:
                following = self._node(place).link.next
                host = self._node(place).link.host
                if not self._rehang(&self.nodes, &self.node_wheel, place):
                    if excess.get(host, 0) > 0:
                        left -= self._give_up(host, 1, excess)
                        self._remove(place)
                place = following
            tick += 1
        self._settle(&self.nodes, &self.node_wheel)
        self._settle(&self.ringed, &self.ring_wheel)
        return 0

    cdef int _give_up(self, uint32_t host, uint32_t count, dict excess) except -1:
        excess[host] -= count
        self.evicted += count
        self.evicted_of[host] = self.evicted_of.get(host, 0) + count
        return count

    cdef dict _excess(self, int64_t count):
        """Return how much each host is to lose, so that what is left is shared as evenly as it can."""
        cdef int host
        held = sorted(
            [(self.accounts[host], host) for host in range(self.accounts_size) if self.accounts[host]],
            reverse=True,
        )
        level = held[0][0]
        taking = 0
        for number in range(len(held)):
            below = held[number + 1][0] if number + 1 < len(held) else 0
            # The first hosts are brought down to one level, as far as is needed.
            room = (level - below) * (number + 1)
            if taking + room >= count:
                level -= -(-(count - taking) // (number + 1))
                break
            taking += room
            level = below
        return {host: account - level for account, host in held if account > level}

    cdef void _settle(self, Slab* slab, Wheel* wheel) noexcept:
        """Move a wheel's `oldest` to the first tick where something hangs."""
        if slab.linked:
            while not wheel.head[wheel.oldest & (SPOKES - 1)]:
                wheel.oldest += 1

    # Tables.

    cdef int _insert(self, uint32_t place) except -1:
        """Put a node into its step's table and the wheel."""
        cdef Node* node = self._node(place)
        cdef Chains* chains = &self.plans[node.link.step].table
        if chains.used >= chains.size:
            self._widen(chains)
        self._chain(chains, place)
        chains.used += 1
        self._hang(&self.nodes, &self.node_wheel, place)
        self.accounts[node.link.host] += 1
        return 0

    cdef void _chain(self, Chains* chains, uint32_t place) noexcept:
        cdef Node* node = self._node(place)
        cdef uint32_t* head
        if chains.classes != NULL:
            head = &chains.classes[node.link.hash & (chains.size - 1)]
            node.class_next = head[0]
            head[0] = place
        head = &chains.groups[node.group_hash & (chains.size - 1)]
        node.group_prev = 0
        node.group_next = head[0]
        if head[0]:
            self._node(head[0]).group_prev = place
        head[0] = place

    cdef int _widen(self, Chains* chains) except -1:
        cdef Chains old = chains[0]
        cdef Chains new
        cdef uint32_t i, place, following
        cdef Ring* ring
        memset(&new, 0, sizeof(new))
        new.size = 2 * old.size
        new.used = old.used
        if old.classes != NULL:
            new.classes = <uint32_t*>heap_new(self.heap, new.size * sizeof(uint32_t))
        if old.groups != NULL:
            new.groups = <uint32_t*>heap_new(self.heap, new.size * sizeof(uint32_t))
        if (old.classes != NULL) > (new.classes != NULL) or (
            (old.groups != NULL) > (new.groups != NULL)
        ):
            self._chains_del(&new)
            raise MemoryError
        chains[0] = new
        for i in range(old.size):
            place = old.classes[i] if old.groups == NULL else old.groups[i]
            while place:
                if old.groups != NULL:
                    following = self._node(place).group_next
                    self._chain(chains, place)
                else:
                    ring = self._ring(place)
                    following = ring.chain_next
                    ring.chain_next = chains.classes[ring.link.hash & (chains.size - 1)]
                    chains.classes[ring.link.hash & (chains.size - 1)] = place
                place = following
        self._chains_del(&old)
        return 0

    cdef void _remove(self, uint32_t place) noexcept:
        """Take a node out of its table and the wheel."""
        cdef Node* node = self._node(place)
        cdef Chains* chains = &self.plans[node.link.step].table
        cdef uint32_t* at
        if chains.classes != NULL:
            at = &chains.classes[node.link.hash & (chains.size - 1)]
            while at[0] != place:
                at = &self._node(at[0]).class_next
            at[0] = node.class_next
        if node.group_prev:
            self._node(node.group_prev).group_next = node.group_next
        else:
            chains.groups[node.group_hash & (chains.size - 1)] = node.group_next
        if node.group_next:
            self._node(node.group_next).group_prev = node.group_prev
        chains.used -= 1
        self._unhang(&self.nodes, &self.node_wheel, place)
        self.accounts[node.link.host] -= 1
        self._drop(place)

    cdef void _remove_ring(self, uint32_t place) noexcept:
        cdef Ring* ring = self._ring(place)
        cdef Chains* chains = &self.plans[ring.link.step].rings
        cdef uint32_t* at = &chains.classes[ring.link.hash & (chains.size - 1)]
        cdef uint32_t entry
        while at[0] != place:
            at = &self._ring(at[0]).chain_next
        at[0] = ring.chain_next
        chains.used -= 1
        self._unhang(&self.ringed, &self.ring_wheel, place)
        self.accounts[ring.link.host] -= ring.used
        self.counted -= ring.used
        entry = ring.oldest
        while entry:
            self._drop(self._entry(entry).before)
            entry = self._entry(entry).next
        self._forget_ring(ring)
        self._give(&self.ringed, place)

    # Matching.

    cdef int _compare(self, uint32_t one, uint32_t two) noexcept:
        """Compare two matches of the same step signal by signal: < 0, 0, > 0."""
        cdef Node* a = self._node(one)
        cdef Node* b = self._node(two)
        cdef Plan* plan = &self.plans[a.link.step]
        cdef int result, i
        cdef uint64_t mine, theirs
        if one == two:
            return 0
        if a.start_no != b.start_no:
            return 1 if a.start_no > b.start_no else -1
        if a.before:
            result = self._compare(a.before, b.before)
            if result:
                return result
        if plan.count == 1:
            mine = self._slot(a.taken).no
            theirs = self._slot(b.taken).no
            return (mine > theirs) - (mine < theirs)
        for i in range(plan.count):
            mine = self._entry(self._taken(plan, a.taken)[i]).no
            theirs = self._entry(self._taken(plan, b.taken)[i]).no
            if mine != theirs:
                return 1 if mine > theirs else -1
        return 0

    cdef uint64_t _killed(self, Absent absent, uint32_t place) except? 0xFFFFFFFF:
        """Return the number of the latest signal that an absence took for a node; 0: none."""
        cdef Node* node = self._node(place)
        if not absent.latest:
            return 0
        key = tuple([<object>node.values[<int>at] for at in absent.places[node.link.step]])
        found = absent.latest.get(key)
        return 0 if found is None else found[0]

    cdef bint _disturbed(self, uint32_t place, int position) except -1:
        """Tell whether an absence that lasts to a step has undone a node of a step before."""
        cdef Absent absent
        cdef uint32_t at
        for absent in self.absences:
            if absent.after < position <= absent.until:
                at = place
                while <int>self._node(at).link.step > absent.after:
                    at = self._node(at).before
                if self._killed(absent, place) > self._last_no(self._node(at)):
                    return True
        return False

    cdef int _feed_step(self, int position) except -1:
        """Take the signal at one step."""
        cdef Plan* plan = &self.plans[position]
        cdef Plan* previous
        cdef PyObject* own[1024]
        cdef PyObject* value
        cdef uint32_t hashed, place, following
        cdef Node* node
        cdef int i
        # A match that lacks a value which a later join needs can never be completed.
        for i in range(plan.required_count):
            if self.fields.get(plan.required[i]) == <PyObject*>None:
                return 0
        for i in range(plan.by_count):
            if self.fields.get(plan.by[i]) == <PyObject*>None:
                return 0
        if plan.distinct >= 0 and self.fields.get(plan.distinct) == <PyObject*>None:
            return 0
        if position == 0:
            if plan.count > 1:
                return self._feed_ring(position, 0)
            return self._make(position, 0, 0, NULL, self.now_no, self.now_ns)
        for i in range(plan.own_count):
            value = self.fields.get(plan.own[i])
            if value == <PyObject*>None:
                return 0
            own[i] = value
        previous = &self.plans[position - 1]
        hashed = hash_values(own, plan.own_count)
        place = previous.table.groups[hashed & (previous.table.size - 1)]
        while place:
            node = self._node(place)
            following = node.group_next
            if node.group_hash == hashed and self.now_ns - node.link.start_ns <= self.within_ns:
                for i in range(plan.own_count):
                    if not same(own[i], node.values[previous.probe[i]]):
                        break
                else:
                    if plan.gap_ns >= 0 and not self._near(node, plan.gap_ns):
                        pass
                    elif self.absences and self._disturbed(place, position):
                        pass
                    elif plan.count > 1:
                        self._feed_ring(position, place)
                    else:
                        self._make(position, place, 0, NULL, node.start_no, node.link.start_ns)
            place = following
        return 0

    cdef bint _near(self, Node* node, int64_t gap_ns) except -1:
        return self.now_ns - <int64_t>(<object>self._last_signal(node)).time_ns <= gap_ns

    cdef int _make(
        self,
        int position,
        uint32_t before,
        uint32_t taken,
        PyObject** group,
        uint64_t start_no,
        int64_t start_ns,
    ) except -1:
        """Make the node that the signal ends, and keep it if it is the best of its class.

        taken, group  of a counting step what the node took, and the values of its ring

        Of values that are equal, the object is taken that stands in the tables already: then most
        comparisons end at the address, and nobody has to look at the texts.
        """
        cdef Plan* plan = &self.plans[position]
        cdef uint32_t place = self._take(&self.nodes)
        cdef Node* node = self._node(place)
        cdef PyObject* value
        cdef int i, from_, known
        node.link.step = position
        node.link.host = self._payer()
        node.refs = 1
        node.link.start_ns = start_ns
        node.start_no = start_no
        node.taken = taken if plan.count > 1 else self._slot_now()
        node.before = before
        if before:
            self._node(before).refs += 1
        for i in range(plan.carried_count):
            from_ = plan.carried[i]
            known = -1 if from_ >= 0 else plan.known[~from_]
            if group != NULL:
                value = group[plan.by_count + from_] if from_ >= 0 else group[known]
            elif from_ >= 0 or known >= 0:
                value = self._node(before).values[from_ if from_ >= 0 else known]
            else:
                value = self.fields.get(plan.needed[~from_])
            incref(value)
            node.values[i] = value
        if position < self.steps - 1:
            return self._keep(position, place)
        if self.absent_after >= 0:
            return self._await(place)
        if not self.best or self._compare(place, self.best) > 0:
            self._drop(self.best)
            self.best = place
        else:
            self._drop(place)
        return 0

    cdef bint _alike(self, Node* one, Node* two, int count) except -1:
        cdef int i
        for i in range(count):
            if not same(one.values[i], two.values[i]):
                return False
        return True

    cdef int _keep(self, int position, uint32_t place) except -1:
        cdef Plan* plan = &self.plans[position]
        cdef Node* node = self._node(place)
        cdef Node* other
        cdef uint32_t at, following
        cdef bint is_less
        node.link.hash = self._class_hash(plan, node.values)
        node.group_hash = node.link.hash
        if plan.table.classes != NULL:
            node.group_hash = self._group_hash(plan, node.values)
        at = self._class_chains(&plan.table)[node.link.hash & (plan.table.size - 1)]
        while at:
            other = self._node(at)
            following = other.group_next if plan.table.classes == NULL else other.class_next
            if other.link.hash == node.link.hash and self._alike(other, node, plan.carried_count):
                is_less = self._compare(place, at) > 0
                if is_less and other.refs == 1 and not plan.gap_follows:
                    self._replace(at, place)
                    return 0
                if is_less or (self.absences and self._disturbed(at, position + 1)):
                    self._remove(at)
                elif not plan.gap_follows:
                    self._drop(place)
                    return 0
                # Before a limited gap, one that started earlier but ended later stays beside it.
            at = following
        return self._insert(place)

    cdef void _replace(self, uint32_t place, uint32_t by) noexcept:
        """Put what one node has into another of the same values that stands in the table."""
        cdef Node* node = self._node(place)
        cdef Node* other = self._node(by)
        node.taken, other.taken = other.taken, node.taken
        node.before, other.before = other.before, node.before
        node.start_no = other.start_no
        node.link.start_ns = other.link.start_ns
        self.accounts[node.link.host] -= 1
        node.link.host = other.link.host
        self.accounts[node.link.host] += 1
        self._drop(by)

    cdef int _await(self, uint32_t place) except -1:
        """Keep a completed match until it is known that nothing undid it."""
        cdef Plan* plan = &self.plans[self.steps - 1]
        cdef uint32_t other
        cdef Py_ssize_t i
        for i in range(len(self.fresh)):
            other = self.fresh[i]
            if self._alike(self._node(place), self._node(other), plan.carried_count):
                if self._compare(place, other) > 0:
                    self.fresh[i] = place
                    place = other
                self._drop(place)
                return 0
        self.fresh.append(place)
        return 0

    cdef int _feed_ring(self, int position, uint32_t before) except -1:
        """Take the signal at a counting step, behind one node or, at the first step, none."""
        cdef Plan* plan = &self.plans[position]
        cdef PyObject* key[1024]
        cdef int i, key_count = plan.by_count
        cdef uint32_t hashed, place, at, row
        cdef Ring* ring
        cdef uint32_t* taken
        cdef Entry* first
        cdef int64_t start_ns = self.now_ns
        for i in range(plan.by_count):
            key[i] = self.fields.get(plan.by[i])
        if before:
            start_ns = self._node(before).link.start_ns
            for i in range(plan.before_count):
                key[key_count] = self._node(before).values[i]
                key_count += 1
        hashed = hash_values(key, key_count)
        place = plan.rings.classes[hashed & (plan.rings.size - 1)]
        while place:
            ring = self._ring(place)
            if ring.link.hash == hashed:
                for i in range(key_count):
                    if not same(key[i], ring.values[i]):
                        break
                else:
                    break
            place = ring.chain_next
        if not place:
            place = self._new_ring(position, hashed, key, key_count, start_ns)
        elif self.absences and before:
            self._undo(place, before, position)
        self._push(place, plan, before, start_ns)
        ring = self._ring(place)
        if ring.used < <uint32_t>plan.count:
            return 0
        first = self._entry(ring.oldest)
        if self.now_ns - first.start_ns > self.within_ns:
            return 0
        row = self._take(&plan.taken)
        taken = self._taken(plan, row)
        at = ring.oldest
        for i in range(plan.count):
            taken[i] = at
            self._entry(at).refs += 1
            at = self._entry(at).next
        return self._make(
            position,
            first.before,
            row,
            ring.values,
            self._node(first.before).start_no if first.before else first.no,
            first.start_ns,
        )

    cdef uint32_t _new_ring(
        self, int position, uint32_t hashed, PyObject** key, int key_count, int64_t start_ns
    ) except 0:
        cdef Chains* chains = &self.plans[position].rings
        cdef uint32_t place = self._take(&self.ringed)
        cdef Ring* ring = self._ring(place)
        cdef int i
        ring.link.step = position
        ring.link.host = self._payer()
        ring.link.hash = hashed
        for i in range(key_count):
            incref(key[i])
            ring.values[i] = key[i]
        if chains.used >= chains.size:
            self._widen(chains)
        ring.chain_next = chains.classes[hashed & (chains.size - 1)]
        chains.classes[hashed & (chains.size - 1)] = place
        chains.used += 1
        ring.link.start_ns = start_ns
        self._hang(&self.ringed, &self.ring_wheel, place)
        return place

    cdef int _undo(self, uint32_t place, uint32_t before, int position) except -1:
        """Take out of a ring what absences that last to its step have undone."""
        cdef Absent absent
        cdef uint64_t killed = 0
        for absent in self.absences:
            if absent.after < position <= absent.until:
                killed = max(killed, self._killed(absent, before))
        cdef Ring* ring = self._ring(place)
        while ring.used and self._entry(ring.oldest).no <= killed:
            self._cut(ring, 0)
        return 0

    cdef void _cut(self, Ring* ring, uint32_t behind) noexcept:
        """Take out the entry behind another one, or (0) the oldest."""
        cdef uint32_t place = self._entry(behind).next if behind else ring.oldest
        cdef Entry* entry = self._entry(place)
        if behind:
            self._entry(behind).next = entry.next
        else:
            ring.oldest = entry.next
        if ring.newest == place:
            ring.newest = behind
        decref(entry.value)
        self._drop(entry.before)
        entry.value = NULL
        entry.before = entry.next = 0
        self._let_entry_go(place)
        ring.used -= 1
        self.accounts[ring.link.host] -= 1
        self.counted -= 1

    cdef int _push(self, uint32_t place, Plan* plan, uint32_t before, int64_t start_ns) except -1:
        """Put the signal to a ring's end: the oldest goes, or the last one with its value."""
        cdef Ring* ring = self._ring(place)
        cdef Entry* entry
        cdef uint32_t at, behind = 0, hashed = 0
        cdef PyObject* value = NULL
        if plan.distinct >= 0:
            value = self.fields.get(plan.distinct)
            hashed = hash_values(&value, 1)
            at = ring.oldest
            while at:
                entry = self._entry(at)
                if entry.hash == hashed and same(entry.value, value):
                    self._cut(ring, behind)
                    break
                behind = at
                at = entry.next
        if ring.used == <uint32_t>plan.count:
            self._cut(ring, 0)
        at = self._take(&self.entries)
        entry = self._entry(at)
        entry.signal = self.now
        incref(self.now)
        entry.value = value
        if value != NULL:
            incref(value)
        entry.hash = hashed
        entry.no = self.now_no
        entry.start_ns = start_ns
        entry.before = before
        entry.refs = 1
        if before:
            self._node(before).refs += 1
        if ring.used:
            self._entry(ring.newest).next = at
        else:
            ring.oldest = at
        ring.newest = at
        ring.used += 1
        self.accounts[ring.link.host] += 1
        self.counted += 1
        ring.link.start_ns = start_ns
        return 0

    cdef int _note(self, Absent absent) except -1:
        """Note a signal that an absence takes."""
        values = []
        for place in absent.own:
            value = <object>self.fields.get(place)
            if value is None:
                return 0
            values.append(value)
        key = tuple(values)
        absent.latest.pop(key, None)
        absent.latest[key] = (self.now_no, self.now_ns, self.fields.host_now())
        since_ns = self.now_ns - self.within_ns - self.after_ns
        while True:
            oldest = next(iter(absent.latest))
            if absent.latest[oldest][1] < since_ns:
                del absent.latest[oldest]
            elif len(absent.latest) > self.bound:
                self._thin(absent.latest)
            else:
                return 0

    cdef int _thin(self, dict latest) except -1:
        """Let go of what an absence noted: the oldest of the hosts that have the most."""
        counts = Counter([noted[2] for noted in latest.values()])
        count = len(latest) - self.bound + self.bound // 16
        for key, (_, _, host) in list(latest.items()):
            # The level falls as the largest lose: looked up anew when it is reached.
            if count > 0 and counts[host] * len(counts) >= len(latest):
                del latest[key]
                counts[host] -= 1
                count -= 1
                self._count_evicted(host)
        return 0

    cdef int _thin_pending(self) except -1:
        """Let go of completed matches that wait: the oldest of the hosts that have the most."""
        hosts = [self._node(<uint32_t>waiting[2][0]).link.host for waiting in self.pending]
        counts = Counter(hosts)
        count = len(hosts) - self.bound + self.bound // 16
        kept = deque()
        for host, waiting in zip(hosts, self.pending):
            if count > 0 and counts[host] * len(counts) >= len(hosts):
                counts[host] -= 1
                count -= 1
                for place in waiting[2]:
                    self._drop(place)
                self._count_evicted(host)
            else:
                kept.append(waiting)
        self.pending = kept
        return 0

    cdef int _count_evicted(self, int host) except -1:
        self.evicted += 1
        self.evicted_of[host] = self.evicted_of.get(host, 0) + 1
        return 0

    cdef int feed(self, object signal, uint64_t no, int64_t time_ns, uint64_t wanted) except -1:
        """Take a signal at the steps (bits 0-31) and absences (from bit 32) that name its rule.

        From the last step, so that a signal is never two steps of one match.
        """
        cdef int position
        cdef Absent absent
        self.now = <PyObject*>signal
        self.now_slot = 0
        self.now_no = no
        self.now_ns = time_ns
        self._expire(time_ns - self.within_ns)
        for position in range(self.steps - 1, -1, -1):
            if wanted >> position & 1:
                if self.fields.is_true(
                    self.plans[position].condition, self.conditions[position]
                ) and (
                    self.firsts[position] is None or self._is_first(self.firsts[position], signal)
                ):
                    self._feed_step(position)
        if wanted >> 32:
            for position in range(len(self.absences)):
                if wanted >> (32 + position) & 1:
                    absent = self.absences[position]
                    if absent.condition is None or holds(absent.condition, signal):
                        self._note(absent)
        if self.fresh:
            self.pending.append((no, time_ns, self.fresh))
            self.fresh = []
            if len(self.pending) > self.bound:
                self._thin_pending()
        if self.nodes.linked + self.counted > self.bound:
            self._evict()
        return 0

    # Looking ahead: nothing here changes anything but what is in the processor's caches.

    cdef int glance(self, Glance* glances, int most, uint64_t wanted) except -1:
        """Find out where a signal's first look-ups will be, and ask for that; return how many."""
        cdef int position = self.steps - 1
        cdef Plan* plan
        while position >= 0 and not wanted >> position & 1:
            position -= 1
        if position < 0:
            return 0
        plan = &self.plans[position]
        if position:
            self._look(&glances[0], position, IN_GROUPS, plan.own, plan.own_count)
            return 1
        # Without a step before, all that is carried is the signal's own.
        self._look(&glances[0], 0, IN_CLASSES, plan.needed, plan.carried_count)
        if plan.count == 1 or most == 1:
            return 1
        self._look(&glances[1], 0, IN_RINGS, plan.by, plan.by_count)
        return 2

    cdef int _look(self, Glance* glance, int position, int kind, int* places, int count) except -1:
        cdef PyObject* values[1024]
        cdef int i
        for i in range(count):
            values[i] = self.fields.get(places[i])
        glance.tables = <PyObject*>self
        glance.position = position
        glance.kind = kind
        if kind == IN_CLASSES:
            glance.hash = self._class_hash(&self.plans[position], values)
        else:
            glance.hash = hash_values(values, count)
        prefetch_line(self._chain_of(glance))
        return 0

    cdef uint32_t* _chain_of(self, Glance* glance) noexcept:
        cdef Chains* chains = &self.plans[glance.position].table
        if glance.kind == IN_RINGS:
            chains = &self.plans[glance.position].rings
        elif glance.kind == IN_GROUPS:
            chains = &self.plans[glance.position - 1].table
            return &chains.groups[glance.hash & (chains.size - 1)]
        return &self._class_chains(chains)[glance.hash & (chains.size - 1)]

    cdef void arrive(self, Glance* glance) noexcept:
        """Ask for what stands first in the chain."""
        glance.place = self._chain_of(glance)[0]
        if glance.kind == IN_RINGS:
            prefetch(self._ring(glance.place))
        else:
            prefetch(self._node(glance.place))

    cdef void unfold(self, Glance* glance) noexcept:
        """Ask for the texts that will be compared, for what a node took, and for a ring's entries."""
        cdef Ring* ring
        cdef Node* node
        cdef Plan* plan
        cdef int i
        if not glance.place:
            return
        if glance.kind == IN_RINGS:
            ring = self._ring(glance.place)
            if ring.used:
                prefetch_line(self._entry(ring.oldest))
                prefetch_line(self._entry(ring.newest))
                for i in range(min(2, self.plans[glance.position].by_count)):
                    prefetch_text(ring.values[i])
            return
        node = self._node(glance.place)
        if node.refs:
            plan = &self.plans[node.link.step]
            if plan.count > 1:
                prefetch_line(self._taken(plan, node.taken))
            for i in range(min(3, plan.carried_count)):
                prefetch_text(node.values[i])

    cdef int touch(self, Glance* glance) except -1:
        """Ask for the signals' places that are let go, and for the chain of what a node leads to."""
        cdef Ring* ring
        cdef Node* node
        cdef Plan* plan
        cdef PyObject* values[1024]
        cdef int i, from_
        if not glance.place:
            return 0
        if glance.kind == IN_RINGS:
            ring = self._ring(glance.place)
            if ring.used > 2:
                prefetch_line(self._entry(self._entry(ring.oldest).next))
            return 0
        node = self._node(glance.place)
        if glance.kind == IN_CLASSES:
            plan = &self.plans[node.link.step]
            if node.refs and plan.count > 1:
                for i in range(min(4, plan.count)):
                    prefetch_line(self._entry(self._taken(plan, node.taken)[i]))
            elif node.refs:
                prefetch_line(self._slot(node.taken))
            return 0
        plan = &self.plans[glance.position]
        if not node.refs or node.group_hash != glance.hash or plan.count > 1:
            return 0
        for i in range(plan.carried_count):
            from_ = plan.carried[i]
            values[i] = (
                node.values[from_] if from_ >= 0 else self.fields.get(plan.needed[~from_])
            )
        glance.kind = IN_CLASSES
        glance.hash = self._class_hash(plan, values)
        prefetch_line(self._chain_of(glance))
        return 1

    cdef void reach(self, Glance* glance) noexcept:
        """Ask for the signal that goes when another match takes a node's place."""
        cdef Node* node
        cdef Plan* plan
        if not glance.place or glance.kind != IN_CLASSES:
            return
        node = self._node(glance.place)
        if node.refs:
            plan = &self.plans[node.link.step]
            if plan.count > 1:
                prefetch_line(self._entry(self._taken(plan, node.taken)[0]).signal)
            else:
                prefetch_line(self._slot(node.taken).signal)

    cdef bint _is_first(self, tuple first, object signal) except -1:
        spec, for_ns, places = first
        values = tuple([<object>self.fields.get(<int>place) for place in places])
        if None in values:
            return False
        return self.seen.is_first(spec, for_ns, values, signal)

    cdef object take_best(self):
        """Return the witness that the signal completed, or None."""
        if not self.best:
            return None
        found = self.witness(self.best)
        self._drop(self.best)
        self.best = 0
        return found

    cdef object take_decided(self):
        """Return the witness of the pending signal that is first, or None: it was undone."""
        cdef uint32_t place, best = 0
        cdef Absent absent = self.absences[self.absent_after]
        places = self.pending.popleft()[2]
        for place in places:
            if self._killed(absent, place) <= self._last_no(self._node(place)) and (
                not best or self._compare(place, best) > 0
            ):
                best = place
        found = self.witness(best) if best else None
        for place in places:
            self._drop(place)
        return found

    cdef object witness(self, uint32_t place):
        """Return per step, in the order of the file, the signals that it took."""
        cdef Node* node
        cdef Plan* plan
        cdef uint32_t* taken
        cdef int i
        cdef list found = [None] * self.steps
        while place:
            node = self._node(place)
            plan = &self.plans[node.link.step]
            if plan.count == 1:
                signals = (<object>self._slot(node.taken).signal,)
            else:
                taken = self._taken(plan, node.taken)
                signals = tuple([
                    <object>self._entry(taken[i]).signal for i in range(plan.count)
                ])
            found[self.arrangement[node.link.step]] = signals
            place = node.before
        return tuple(found)


cdef class Takers:
    """Who wants the signals of one rule."""

    cdef object tags
    cdef list numbers     # of tables, in order
    cdef int count
    cdef PyObject** tables        # borrowed
    cdef uint64_t* wanted         # the steps and absences of each

    def __dealloc__(self):
        free(self.tables)
        free(self.wanted)


@cython.no_gc_clear
cdef class TableSet:
    """The tables of several sequences over one ordered stream of signals.

    sequences     of :class:`vedette.core.sequence.Sequence`
    partials_max  see :class:`vedette.core.correlator.Correlator`
    seen          :class:`vedette.core.first_seen.Seen`
    """

    cdef Heap heap
    cdef Fields fields
    cdef list tables
    cdef list numbers             # of the sequence that each belongs to
    cdef list spans               # (first, end) of each sequence's tables
    cdef list awaiting            # numbers of sequences that an absence follows
    cdef dict by_rule
    cdef dict by_tag
    cdef list by_any
    cdef dict cache
    cdef dict made_cache
    cdef list wanting             # Takers of the signal of each context
    cdef Glance glances[CONTEXTS][GLANCES]
    cdef bint is_deeper[CONTEXTS]
    cdef object last
    cdef int64_t last_ns
    cdef uint64_t no
    cdef readonly uint64_t taken  # signals, without those that were made
    cdef readonly uint64_t duplicates
    cdef bint has_last

    def __init__(self, sequences, uint32_t partials_max, seen):
        cdef Tables tables
        self.fields = Fields()
        self.wanting = [None] * CONTEXTS
        memset(self.glances, 0, sizeof(self.glances))
        self.tables = []
        self.numbers = []
        self.spans = []
        self.awaiting = []
        self.by_rule = {}
        self.by_tag = {}
        self.by_any = []
        self.cache = {}
        self.made_cache = {}
        for number, sequence in enumerate(sequences):
            first = len(self.tables)
            if sequence.aggregate is not None:
                # Reckoned in core/windows.py.
                self.spans.append((first, first))
                continue
            for arrangement in sequence.arrangements():
                tables = Tables()
                tables.prepare(&self.heap, self.fields, sequence, arrangement, partials_max, seen)
                wanted = [
                    (1 << position, sequence.steps[index])
                    for position, index in enumerate(arrangement)
                ]
                wanted += [(1 << 32 + n, a.step) for n, a in enumerate(sequence.absences)]
                for bit, step in wanted:
                    for rule in step.rules:
                        self.by_rule.setdefault(rule, []).append((len(self.tables), bit))
                    if step.any_rule:
                        self.by_any.append((len(self.tables), bit))
                    for tag in step.tags:
                        self.by_tag.setdefault(tag, []).append((len(self.tables), bit))
                self.tables.append(tables)
                self.numbers.append(number)
            self.spans.append((first, len(self.tables)))
            if sequence.afterwards_ns:
                self.awaiting.append(number)

    def __dealloc__(self):
        # The tables free what they have from the heap, which is part of this object.
        self.tables = None

    @property
    def partials(self):
        """Partial matches, and signals that are being counted, of all sequences."""
        cdef Tables tables
        found = 0
        for tables in self.tables:
            found += tables.nodes.linked + tables.counted
        return found

    @property
    def evicted(self):
        """What went because a bound was reached."""
        return sum(tables.evicted for tables in self.tables)

    @property
    def evicted_of(self):
        """Of these, how many were on the account of which host; by id, of HOSTS - 1 hosts."""
        cdef Tables tables
        found = Counter()
        for tables in self.tables:
            # Another thread may ask, while more go.
            for number, count in list(tables.evicted_of.items()):
                found[self.fields.host_ids[number]] += count
        return dict(found)

    @property
    def heap_bytes(self):
        """Bytes of the tables, without the signals that they name."""
        return self.heap.bytes

    def wants(self, rule, tags):
        """Tell whether any step or absence takes signals of a rule with these tags."""
        return self._takers_of(rule, tags, False).count > 0

    cdef Takers _takers(self, PyObject* inner, bint is_made):
        """Return who wants a signal, by its rule and tags."""
        return self._takers_of(
            <object>member(inner, RULE_AT), <object>member(inner, TAGS_AT), is_made
        )

    cdef Takers _takers_of(self, object rule, object tags, bint is_made):
        cdef Takers found
        cdef dict cache = self.made_cache if is_made else self.cache
        cdef PyObject* known = item_of(cache, rule)
        if known != NULL:
            found = <Takers>known
            if same_tags(<PyObject*>found.tags, <PyObject*>tags):
                return found
        wanted = {}
        # No host can send what stands for an incident, whatever it calls its rules.
        if rule.startswith(OF_SEQUENCE) == is_made:
            for number, bit in self.by_rule.get(rule, ()):
                wanted[number] = wanted.get(number, 0) | bit
        if not is_made:
            for number, bit in self.by_any:
                wanted[number] = wanted.get(number, 0) | bit
        for tag in tags:
            for number, bit in self.by_tag.get(tag, ()):
                wanted[number] = wanted.get(number, 0) | bit
        found = Takers()
        found.tags = tags
        found.numbers = sorted(wanted)
        found.tables = <PyObject**>malloc((len(wanted) + 1) * sizeof(PyObject*))
        found.wanted = <uint64_t*>malloc((len(wanted) + 1) * sizeof(uint64_t))
        if found.tables == NULL or found.wanted == NULL:
            raise MemoryError
        for number in found.numbers:
            found.tables[found.count] = <PyObject*>self.tables[<int>number]
            found.wanted[found.count] = wanted[number]
            found.count += 1
        if len(cache) >= 65536:
            cache.clear()
        cache[rule] = found
        return found

    def run(self, list signals, Py_ssize_t at, bint is_made=False):
        """Take signals from place ``at`` on, up to one that completes something or to the end.

        ``is_made``: they were made of what the last signal completed, and so come behind it.
        Returns the place behind it, and (number of the sequence, witness) of each completion.
        Raises ValueError for a signal that comes before the last one taken.
        """
        cdef object signal
        cdef int64_t time_ns
        cdef Takers takers
        cdef Tables tables
        cdef Py_ssize_t i, end = len(signals)
        cdef list completed = []
        while at < end:
            self._look_ahead(signals, at, end, is_made)
            signal = signals[at]
            at += 1
            if not is_a(<PyObject*>signal, <PyObject*>FleetSignal):
                raise TypeError(f"{signal!r} is no FleetSignal")
            time_ns = <object>member(<PyObject*>signal, TIME_AT)
            if not is_made:
                if self.has_last and time_ns <= self.last_ns and not self._follows(signal):
                    continue
                self.has_last = True
                self.last = signal
                self.last_ns = time_ns
                self.taken += 1
                if self.awaiting:
                    self._decide(time_ns - 1, completed)
            self.no += 1
            takers = self._begin(<PyObject*>signal, (at - 1) & (CONTEXTS - 1), is_made)
            if takers.count:
                for i in range(takers.count):
                    tables = <Tables>takers.tables[i]
                    tables.feed(signal, self.no, time_ns, takers.wanted[i])
                    if tables.best:
                        self._collect(<int>takers.numbers[i], completed)
            if completed:
                break
        return at, completed

    cdef int _look_ahead(
        self, list signals, Py_ssize_t at, Py_ssize_t end, bint is_made
    ) except -1:
        """Ask for the memory that the signals to come will need, each once what leads to it is there.

        In a stream over many keys nearly nothing of it is in the processor's caches: the signal's
        own objects, then the place in the table, what stands there, and what that names.
        """
        cdef PyObject* signal
        cdef PyObject* inner
        cdef PyObject* tables
        cdef Glance* glance
        cdef int i, stage, context
        if at + AHEAD < end:
            prefetch(<PyObject*>signals[at + AHEAD])
        if at + 18 < end:
            signal = <PyObject*>signals[at + 18]
            if is_a(signal, <PyObject*>FleetSignal):
                prefetch(member(signal, SIGNAL_AT))
                prefetch_line(member(signal, TIME_AT))
                prefetch_text(member(signal, HOST_NAME_AT))
        if at + 15 < end:
            signal = <PyObject*>signals[at + 15]
            if is_a(signal, <PyObject*>FleetSignal):
                inner = member(signal, SIGNAL_AT)
                prefetch(member(inner, FIELDS_AT))
                prefetch_text(member(inner, RULE_AT))
                prefetch_line(member(inner, TAGS_AT))
        if at + 13 < end:
            signal = <PyObject*>signals[at + 13]
            if is_a(signal, <PyObject*>FleetSignal):
                inner = member(signal, SIGNAL_AT)
                prefetch_keys(member(inner, FIELDS_AT))
                prefetch_items(member(inner, TAGS_AT))
        if at + 11 < end:
            signal = <PyObject*>signals[at + 11]
            if is_a(signal, <PyObject*>FleetSignal):
                self._glance(signal, (at + 11) & (CONTEXTS - 1), is_made)
        for stage in range(10, 3, -1):
            context = (at + stage) & (CONTEXTS - 1)
            if stage == 8:
                self.is_deeper[context] = False
            elif stage < 7 and not self.is_deeper[context]:
                continue
            self.fields.at = context
            for i in range(GLANCES):
                glance = &self.glances[context][i]
                tables = glance.tables
                if tables == NULL:
                    break
                if stage == 10:
                    (<Tables>tables).arrive(glance)
                elif stage == 9:
                    (<Tables>tables).unfold(glance)
                elif stage == 8:
                    glance.is_deeper = (<Tables>tables).touch(glance)
                    self.is_deeper[context] |= glance.is_deeper
                elif not glance.is_deeper:
                    if stage == 7:
                        (<Tables>tables).reach(glance)
                elif stage == 7:
                    (<Tables>tables).arrive(glance)
                elif stage == 6:
                    (<Tables>tables).unfold(glance)
                elif stage == 5:
                    (<Tables>tables).touch(glance)
                else:
                    (<Tables>tables).reach(glance)
        return 0

    cdef Takers _begin(self, PyObject* signal, int context, bint is_made):
        """Give a signal its context, and return who wants it."""
        if self.fields.begin(context, signal):
            self.wanting[context] = self._takers(member(signal, SIGNAL_AT), is_made)
        return <Takers>self.wanting[context]

    cdef int _glance(self, PyObject* signal, int context, bint is_made) except -1:
        """Read the values that a signal's first look-ups need, and ask for the places."""
        cdef Takers takers = self._begin(signal, context, is_made)
        cdef Glance* glances = self.glances[context]
        cdef int i, used = 0
        for i in range(takers.count):
            if used == GLANCES:
                return 0
            used += (<Tables>takers.tables[i]).glance(
                &glances[used], GLANCES - used, takers.wanted[i]
            )
        if used < GLANCES:
            glances[used].tables = NULL
        return 0

    cdef bint _follows(self, object signal) except -1:
        """Tell whether a signal of the last one's time or before is new."""
        if signal.order > self.last.order:
            return True
        if signal.order < self.last.order:
            raise ValueError(
                f"signal {signal.order} comes before {self.last.order}, which was taken already"
            )
        self.duplicates += 1
        return False

    cdef int _collect(self, int at, list completed) except -1:
        """Add a completion; of several orders of a sequence's steps, the greatest stays."""
        cdef Tables tables = self.tables[at]
        number = self.numbers[at]
        witness = tables.take_best()
        if completed and completed[-1][0] == number and completed[-1][1] is not None:
            known = completed[-1][1]
            if in_order(known)[-1] == in_order(witness)[-1]:
                if in_order(witness) > in_order(known):
                    completed[-1] = (number, witness)
                return 0
        completed.append((number, witness))
        return 0

    cdef int _decide(self, int64_t until_ns, list completed) except -1:
        """Complete what an absence could have undone up to a time, and did not."""
        cdef Tables tables
        for number in self.awaiting:
            first, end = self.spans[number]
            while True:
                heads = []
                for tables in self.tables[first:end]:
                    if tables.pending and tables.pending[0][1] + tables.after_ns <= until_ns:
                        heads.append(tables.pending[0][0])
                if not heads:
                    break
                now = min(heads)
                best = None
                for tables in self.tables[first:end]:
                    if tables.pending and tables.pending[0][0] == now:
                        witness = tables.take_decided()
                        if witness is not None and (
                            best is None or in_order(witness) > in_order(best)
                        ):
                            best = witness
                if best is not None:
                    completed.append((number, best))
        return 0

    def decide(self, int64_t until_ns):
        """Return the completions that are sure once nothing more comes of the time up to here."""
        completed = []
        self._decide(until_ns, completed)
        return completed


cdef list in_order(tuple witness):
    """Return the orders of a witness' signals, sorted."""
    return sorted([signal.order for taken in witness for signal in taken])
