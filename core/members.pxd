"""Fields of a msgspec.Struct read at their place in its objects, a load each."""

from cpython.object cimport PyObject

cdef extern from *:
    """
    #include <structmember.h>

    /* Where a field of a msgspec.Struct is in its objects, and in those of subclasses. */
    static Py_ssize_t member_offset(PyObject* descriptor) {
        PyMemberDef* member;
        if (!PyObject_TypeCheck(descriptor, &PyMemberDescr_Type)) {
            PyErr_SetString(PyExc_TypeError, "not a field of a struct");
            return -1;
        }
        member = ((PyMemberDescrObject*)descriptor)->d_member;
        if (member->type != T_OBJECT_EX && member->type != T_OBJECT) {
            PyErr_SetString(PyExc_TypeError, "a field of a struct that is no object");
            return -1;
        }
        return member->offset;
    }

    static inline int is_a(PyObject* object, PyObject* type) {
        return PyObject_TypeCheck(object, (PyTypeObject*)type);
    }
    """
    Py_ssize_t member_offset(object descriptor) except -1
    bint is_a(PyObject*, PyObject*) noexcept


cdef inline PyObject* member(PyObject* owner, Py_ssize_t offset) noexcept:
    """Return a struct's field, borrowed. All fields of these structs are always set."""
    return (<PyObject**>(<char*>owner + offset))[0]
