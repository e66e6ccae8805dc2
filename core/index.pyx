# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Building and asking the static indexes; index.pxd says what they hold.

Literals that begin, end or are the value lie in tries (a walk stops at the first byte that no
literal has); literals inside it in an Aho-Corasick automaton, made deterministic over classes of
bytes (Aho and Corasick, "Efficient string matching", CACM 1975).
"""
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from vedette.core.mem cimport heap_del, heap_new, heap_new_touched

from bisect import bisect_left

cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef uint32_t OUTPUT = 0x80000000

# More than what quiet() has others wait until they ask for the GIL.
cdef int64_t HOLD_NS = 200_000
cdef int64_t released_ns = 0

INT64_MIN = -(1 << 63)
INT64_MAX = (1 << 63) - 1


cdef int let_others_run() except -1:
    """Give up the GIL for a moment where it was held for long: compiled loops never would, and
    rules are compiled beside the thread that watches the ring.

    Not more often: who waits is woken each time, comes too late each time, and starts to wait
    anew. Only to one who has waited for a whole interval is the GIL handed over (CPython's
    ceval_gil.c, FORCE_SWITCHING).
    """
    global released_ns
    cdef timespec now
    cdef int64_t now_ns
    clock_gettime(CLOCK_MONOTONIC, &now)
    now_ns = now.tv_sec * 1_000_000_000 + now.tv_nsec
    if now_ns - released_ns >= HOLD_NS:
        with nogil:
            sched_yield()
        clock_gettime(CLOCK_MONOTONIC, &now)
        released_ns = now.tv_sec * 1_000_000_000 + now.tv_nsec
    return 0


cdef inline uint32_t _trie_step(const Trie* trie, uint32_t node, uint8_t byte) noexcept nogil:
    cdef uint32_t wanted = node << 8 | byte
    cdef uint32_t slot = (wanted * <uint32_t>0x9E3779B1) >> 7 & trie.edge_mask
    while trie.edges[slot].from_ != 0:
        if trie.edges[slot].from_ == wanted:
            return trie.edges[slot].to
        slot = (slot + 1) & trie.edge_mask
    return 0


cdef void _automaton_match(const Automaton* automaton, const uint32_t* lists, const uint8_t* value,
                           size_t size, Hits* hits) noexcept nogil:
    cdef uint32_t state = 0
    cdef uint32_t at
    cdef size_t i
    for i in range(size):
        state = automaton.next[(state & ~OUTPUT) * automaton.classes + automaton.class_of[value[i]]]
        if state & OUTPUT:
            at = state & ~OUTPUT
            while at:
                hits_add_slice(hits, lists, automaton.output[at])
                at = automaton.shorter[at]


cdef void bytes_match(const BytesIndex* index, const uint8_t* value, size_t size,
                      Hits* hits) noexcept nogil:
    """Add the predicates that are true of a present value."""
    cdef const uint32_t* lists = index.lists
    cdef uint32_t node
    cdef size_t i
    if not index.in_use:
        return
    hits_add_slice(hits, lists, index.always)
    if index.forward.nodes:
        node = 1
        i = 0
        while True:
            hits_add_slice(hits, lists, index.forward.prefix[node])
            if index.forward.component[node].count and (i == size or value[i] == 47):
                hits_add_slice(hits, lists, index.forward.component[node])
            if i == size:
                hits_add_slice(hits, lists, index.forward.exact[node])
                break
            node = (index.forward.root[value[0]] if i == 0
                    else _trie_step(&index.forward, node, value[i]))
            if node == 0:
                break
            i += 1
    if index.backward.nodes:
        node = 1
        i = size
        while True:
            hits_add_slice(hits, lists, index.backward.prefix[node])
            if i == 0:
                break
            i -= 1
            node = (index.backward.root[value[i]] if node == 1
                    else _trie_step(&index.backward, node, value[i]))
            if node == 0:
                break
    if index.nets.nodes and (size == 4 or size == 16):
        node = index.nets.root[size]
        i = 0
        while node != 0:
            hits_add_slice(hits, lists, index.nets.prefix[node])
            if i == 8 * size:
                break
            node = _trie_step(&index.nets, node, value[i >> 3] >> (7 - (i & 7)) & 1)
            i += 1
    if index.inside.states:
        _automaton_match(&index.inside, lists, value, size, hits)
    if index.inside_folded.states:
        _automaton_match(&index.inside_folded, lists, value, size, hits)


cdef void int_match(const IntIndex* index, int64_t value, Hits* hits) noexcept nogil:
    """Add the predicates that are true of a present number."""
    cdef uint32_t low = 0
    cdef uint32_t high = index.count
    cdef uint32_t middle
    if not index.in_use:
        return
    hits_add_slice(hits, index.lists, index.always)
    while low < high:
        middle = (low + high) >> 1
        if index.bounds[middle] < value:
            low = middle + 1
        else:
            high = middle
    middle = index.leaves + 2 * low + (low < index.count and index.bounds[low] == value)
    while middle:
        hits_add_slice(hits, index.lists, index.nodes[middle])
        middle >>= 1


cdef int hits_init(Hits* hits, Heap* heap, uint32_t predicates, object random_words) except -1:
    """random_words: an iterable of at least `predicates` random 64-bit numbers."""
    cdef uint32_t p = 0
    memset(hits, 0, sizeof(Hits))
    hits.predicates = predicates
    hits.found = <uint32_t*>heap_new(heap, (predicates + 1) * sizeof(uint32_t))
    hits.mark = <uint32_t*>heap_new(heap, (predicates + 1) * sizeof(uint32_t))
    hits.key = <uint64_t*>heap_new(heap, (predicates + 1) * sizeof(uint64_t))
    if hits.found == NULL or hits.mark == NULL or hits.key == NULL:
        raise MemoryError
    for word in random_words:
        if p == predicates:
            break
        if p % 1024 == 0:
            let_others_run()
        hits.key[p] = word
        p += 1
    return 0


cdef void hits_free(Hits* hits, Heap* heap) noexcept nogil:
    heap_del(heap, hits.found, (hits.predicates + 1) * sizeof(uint32_t))
    heap_del(heap, hits.mark, (hits.predicates + 1) * sizeof(uint32_t))
    heap_del(heap, hits.key, (hits.predicates + 1) * sizeof(uint64_t))
    memset(hits, 0, sizeof(Hits))


cdef void* _new(Heap* heap, size_t size, uint64_t* bytes_) except NULL:
    cdef void* block
    with nogil:
        block = heap_new_touched(heap, size if size else 1)
    if block == NULL:
        raise MemoryError
    bytes_[0] += size if size else 1
    return block


cdef Slice _append(list lists, object predicates):
    cdef Slice slice_
    slice_.start = <uint32_t>len(lists)
    slice_.count = <uint32_t>len(predicates)
    lists.extend(predicates)
    return slice_


cdef int _pack_lists(uint32_t** target, uint32_t* size, Heap* heap, list lists,
                     uint64_t* bytes_) except -1:
    cdef uint32_t i
    size[0] = <uint32_t>len(lists)
    target[0] = <uint32_t*>_new(heap, size[0] * sizeof(uint32_t), bytes_)
    for i in range(size[0]):
        if i % 16384 == 0:
            let_others_run()
        target[0][i] = lists[i]
    return 0


cpdef int drop(object items) except -1:
    """Free what a list or dict holds, a part at a time: at once it would hold up other threads."""
    cdef uint32_t count = 0
    if isinstance(items, list):
        while items:
            del (<list>items)[max(0, len(<list>items) - 256):]
            let_others_run()
        return 0
    while items:
        (<dict>items).popitem()
        count += 1
        if count % 256 == 0:
            let_others_run()
    return 0


cdef int _trie_build(Trie* trie, Heap* heap, list lists, dict prefix, dict exact, dict component,
                     uint64_t* bytes_) except -1:
    """Each dict: literal -> predicates."""
    cdef dict edges = {}
    cdef list ends = [None, {}]
    cdef uint32_t slots = 16
    cdef uint32_t slot
    cdef uint32_t from_
    cdef uint32_t node
    cdef uint8_t byte
    cdef bytes literal
    if not prefix and not exact and not component:
        return 0
    for kind, table in (("prefix", prefix), ("exact", exact), ("component", component)):
        for count, (literal, predicates) in enumerate(table.items()):
            if count % 256 == 0:
                let_others_run()
            node = 1
            for byte in literal:
                from_ = node << 8 | byte
                found = edges.get(from_)
                if found is None:
                    found = len(ends)
                    if found >= 1 << 24:
                        raise MemoryError("rules: literals need more than 16 million trie nodes")
                    ends.append({})
                    edges[from_] = found
                node = found
            ends[node][kind] = predicates
    trie.nodes = <uint32_t>len(ends)
    while slots < 2 * len(edges):
        slots *= 2
    trie.edge_mask = slots - 1
    trie.edges = <Edge*>_new(heap, slots * sizeof(Edge), bytes_)
    trie.prefix = <Slice*>_new(heap, trie.nodes * sizeof(Slice), bytes_)
    trie.exact = <Slice*>_new(heap, trie.nodes * sizeof(Slice), bytes_)
    trie.component = <Slice*>_new(heap, trie.nodes * sizeof(Slice), bytes_)
    for count, (key, to) in enumerate(edges.items()):
        if count % 4096 == 0:
            let_others_run()
        from_ = key
        if from_ >> 8 == 1:
            trie.root[from_ & 255] = to
            continue
        slot = (from_ * <uint32_t>0x9E3779B1) >> 7 & trie.edge_mask
        while trie.edges[slot].from_ != 0:
            slot = (slot + 1) & trie.edge_mask
        trie.edges[slot].from_ = from_
        trie.edges[slot].to = to
    for node in range(1, trie.nodes):
        if node % 4096 == 0:
            let_others_run()
        end = ends[node]
        if end:
            trie.prefix[node] = _append(lists, end.get("prefix", ()))
            trie.exact[node] = _append(lists, end.get("exact", ()))
            trie.component[node] = _append(lists, end.get("component", ()))
    drop(ends)
    drop(edges)
    return 0


cdef void _trie_free(Trie* trie, Heap* heap) noexcept nogil:
    if trie.nodes == 0:
        return
    heap_del(heap, trie.edges, (trie.edge_mask + 1) * sizeof(Edge))
    heap_del(heap, trie.prefix, trie.nodes * sizeof(Slice))
    heap_del(heap, trie.exact, trie.nodes * sizeof(Slice))
    heap_del(heap, trie.component, trie.nodes * sizeof(Slice))


cdef int _automaton_build(Automaton* automaton, Heap* heap, list lists, dict literals, bint folded,
                          uint64_t* bytes_) except -1:
    """literals: literal (not empty; folded: in lower case) -> predicates."""
    cdef list children = [{}]
    cdef list output = [()]
    cdef list order = []
    cdef list fail
    cdef uint32_t state
    cdef uint32_t child
    cdef uint32_t class_
    cdef uint32_t width
    cdef uint8_t byte
    cdef bytes literal
    if not literals:
        return 0
    seen = set()
    for count, literal in enumerate(literals):
        if count % 256 == 0:
            let_others_run()
        seen.update(literal)
    alphabet = sorted(seen)
    automaton.classes = <uint32_t>len(alphabet) + 1
    for class_, byte in enumerate(alphabet):
        automaton.class_of[byte] = class_ + 1
        if folded and 97 <= byte <= 122:
            automaton.class_of[byte - 32] = class_ + 1
    for count, (literal, predicates) in enumerate(literals.items()):
        if count % 256 == 0:
            let_others_run()
        state = 0
        for byte in literal:
            class_ = automaton.class_of[byte]
            found = (<dict>children[state]).get(class_)
            if found is None:
                found = len(children)
                if found >= 1 << 24:
                    raise MemoryError("rules: literals need more than 16 million states")
                children.append({})
                output.append(())
                children[state][class_] = found
            state = found
        output[state] = predicates
    automaton.states = <uint32_t>len(children)
    width = automaton.classes
    automaton.next = <uint32_t*>_new(heap, <size_t>automaton.states * width * sizeof(uint32_t), bytes_)
    automaton.output = <Slice*>_new(heap, automaton.states * sizeof(Slice), bytes_)
    automaton.shorter = <uint32_t*>_new(heap, automaton.states * sizeof(uint32_t), bytes_)
    for state in range(automaton.states):
        if state % 4096 == 0:
            let_others_run()
        automaton.output[state] = _append(lists, output[state])
    # Breadth first: a state's row is its failure state's row with its own edges laid over it.
    fail = [0] * len(children)
    order = [0]
    for count, state in enumerate(order):
        if count % 256 == 0:
            let_others_run()
        if state:
            for class_ in range(width):
                automaton.next[<size_t>state * width + class_] = (
                    automaton.next[<size_t>(<uint32_t>fail[state]) * width + class_])
        for class_, child in (<dict>children[state]).items():
            if state:
                fail[child] = automaton.next[<size_t>(<uint32_t>fail[state]) * width + class_] & ~OUTPUT
            found = fail[child]
            automaton.shorter[child] = (found if automaton.output[<uint32_t>found].count
                                        else automaton.shorter[<uint32_t>found])
            automaton.next[<size_t>state * width + class_] = child
            if automaton.output[child].count or automaton.shorter[child]:
                automaton.next[<size_t>state * width + class_] |= OUTPUT
            order.append(child)
    for freed in (children, output, fail, order):
        drop(freed)
    return 0


cdef void _automaton_free(Automaton* automaton, Heap* heap) noexcept nogil:
    if automaton.states == 0:
        return
    heap_del(heap, automaton.next,
             <size_t>automaton.states * automaton.classes * sizeof(uint32_t))
    heap_del(heap, automaton.output, automaton.states * sizeof(Slice))
    heap_del(heap, automaton.shorter, automaton.states * sizeof(uint32_t))


cdef int bytes_index_build(BytesIndex* index, Heap* heap, list entries) except -1:
    """entries: (kind, literal, predicate); kinds: always, exact, prefix, component, suffix,
    inside, inside_folded, net. Raises MemoryError; what was built then is freed by bytes_index_free."""
    cdef dict tables = {kind: {} for kind in
                        ("exact", "prefix", "component", "suffix", "inside", "inside_folded", "net")}
    cdef list lists = []
    cdef list always = []
    memset(index, 0, sizeof(BytesIndex))
    if not entries:
        return 0
    for count, (kind, literal, predicate) in enumerate(entries):
        if count % 512 == 0:
            let_others_run()
        if kind == "always" or (kind in ("inside", "inside_folded") and not literal):
            always.append(predicate)
        else:
            found = (<dict>tables[kind]).setdefault(literal, [])
            if predicate not in found:
                found.append(predicate)
    index.in_use = True
    index.always = _append(lists, always)
    _trie_build(&index.forward, heap, lists, tables["prefix"], tables["exact"],
                tables["component"], &index.bytes)
    backward = {}
    for count, (literal, found) in enumerate(tables["suffix"].items()):
        if count % 512 == 0:
            let_others_run()
        backward[literal[::-1]] = found
    _trie_build(&index.backward, heap, lists, backward, {}, {}, &index.bytes)
    _trie_build(&index.nets, heap, lists, tables["net"], {}, {}, &index.bytes)
    _automaton_build(&index.inside, heap, lists, tables["inside"], False, &index.bytes)
    folded = {}
    for count, (literal, found) in enumerate(tables["inside_folded"].items()):
        if count % 512 == 0:
            let_others_run()
        folded.setdefault(literal.lower(), []).extend(found)
    _automaton_build(&index.inside_folded, heap, lists, folded, True, &index.bytes)
    _pack_lists(&index.lists, &index.lists_size, heap, lists, &index.bytes)
    drop(lists)
    for freed in tables.values():
        drop(freed)
    return 0


cdef void bytes_index_free(BytesIndex* index, Heap* heap) noexcept nogil:
    _trie_free(&index.forward, heap)
    _trie_free(&index.backward, heap)
    _trie_free(&index.nets, heap)
    _automaton_free(&index.inside, heap)
    _automaton_free(&index.inside_folded, heap)
    heap_del(heap, index.lists, index.lists_size * sizeof(uint32_t) if index.lists_size else 1)
    memset(index, 0, sizeof(BytesIndex))


cdef int int_index_build(IntIndex* index, Heap* heap, dict points, list ranges, list always) except -1:
    """points: value -> predicates true of just it; ranges: (low, high, predicate), both ends
    included, None for no end; always: predicates true of any present number."""
    cdef list lists = []
    cdef set values = set(points)
    cdef dict nodes
    cdef uint32_t i
    cdef uint32_t left
    cdef uint32_t right
    memset(index, 0, sizeof(IntIndex))
    if not points and not ranges and not always:
        return 0
    # Constants may lie beyond what a value can be; then they bound nothing, or match nothing.
    values = {value for value in values if INT64_MIN <= value <= INT64_MAX}
    ranges = [
        (None if low is None or low <= INT64_MIN else low,
         None if high is None or high >= INT64_MAX else high, predicate)
        for low, high, predicate in ranges
        if (low is None or low <= INT64_MAX) and (high is None or high >= INT64_MIN)]
    for low, high, _ in ranges:
        if low is not None:
            values.add(low)
        if high is not None:
            values.add(high)
    let_others_run()
    bounds = sorted(values)
    let_others_run()
    index.in_use = True
    index.count = <uint32_t>len(bounds)
    index.leaves = 1
    while index.leaves < 2 * index.count + 1:
        index.leaves *= 2
    nodes = {}
    for i, value in enumerate(bounds):
        if i % 4096 == 0:
            let_others_run()
        if value in points:
            nodes[index.leaves + 2 * i + 1] = list(points[value])
    for count, (low, high, predicate) in enumerate(ranges):
        if count % 256 == 0:
            let_others_run()
        first = 0 if low is None else 2 * bisect_left(bounds, low) + 1
        last = 2 * index.count if high is None else 2 * bisect_left(bounds, high) + 1
        # The usual walk up from both ends: [left, right) is what is still to be covered.
        left = index.leaves + <uint32_t>first
        right = index.leaves + <uint32_t>last + 1
        while left < right:
            if left & 1:
                nodes.setdefault(left, []).append(predicate)
                left += 1
            if right & 1:
                right -= 1
                nodes.setdefault(right, []).append(predicate)
            left >>= 1
            right >>= 1
    index.always = _append(lists, always)
    index.bounds = <int64_t*>_new(heap, index.count * sizeof(int64_t), &index.bytes)
    index.nodes = <Slice*>_new(heap, 2 * index.leaves * sizeof(Slice), &index.bytes)
    for i in range(index.count):
        index.bounds[i] = bounds[i]
    for count, (node, predicates) in enumerate(nodes.items()):
        if count % 1024 == 0:
            let_others_run()
        index.nodes[<uint32_t>node] = _append(lists, predicates)
    _pack_lists(&index.lists, &index.lists_size, heap, lists, &index.bytes)
    return 0


cdef void int_index_free(IntIndex* index, Heap* heap) noexcept nogil:
    if not index.in_use:
        return
    heap_del(heap, index.bounds, index.count * sizeof(int64_t) if index.count else 1)
    heap_del(heap, index.nodes, 2 * index.leaves * sizeof(Slice))
    heap_del(heap, index.lists, index.lists_size * sizeof(uint32_t) if index.lists_size else 1)
    memset(index, 0, sizeof(IntIndex))
