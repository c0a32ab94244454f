# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Heads, in C: see heads.py, which says what these functions promise.

How it keeps its hands off other people's memory: nothing is read before `stop`, which is the end of
`data`; each loop says so in its condition, and each place that looks further has asked first how
much is left. What is written has been measured before, byte for byte, in `size_of`; and in between
no Python runs, which could change what was measured.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.string cimport memcmp, memcpy

from .kinds import CONNECTION, COUNT, HOST, KEY, LENGTH, OURS, STRANGE

cdef extern from "Python.h":
    PyObject* PyDict_GetItemWithError(object, object) except? NULL
    long long PyLong_AsLongLong(object) except? -1
    bint PyBytes_CheckExact(object)

ctypedef const unsigned char* bytes_at

cdef unsigned char[256] TOKEN, TARGET, TEXT


cdef void allow(unsigned char* table, bytes members):
    for member in members:
        table[<unsigned char>member] = 1


cdef bytes LETTERS = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
allow(TOKEN, LETTERS + b"!#$%&'*+-.^_`|~")
allow(TARGET, LETTERS + b"-._~!$&'()*+,;=:@/%?")
allow(TEXT, bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100)) + b"\t")

cdef tuple METHODS = (b"POST", b"GET", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS")

cdef enum:
    FIELDS_MAX = 128
    ROOM = 60  # for Content-Length, a version, and three line ends

cdef long long C_HOST = HOST, C_LENGTH = LENGTH, C_KEY = KEY, C_OURS = OURS, C_COUNT = COUNT
cdef long long C_CONNECTION = CONNECTION, C_STRANGE = STRANGE


cdef inline long long kind_of(object kinds, object name) except -1:
    cdef PyObject* found = PyDict_GetItemWithError(kinds, name)
    if found is NULL:
        return PyLong_AsLongLong(kinds[name])  # it learns
    return PyLong_AsLongLong(<object>found)


cdef Py_ssize_t number(bytes_at at, Py_ssize_t size) noexcept:
    """Digits as a number; -1 for anything else, and for what no body here can have."""
    cdef Py_ssize_t value = 0
    cdef Py_ssize_t index
    if size < 1 or size > 15:
        return -1
    for index in range(size):
        if at[index] < 48 or at[index] > 57:
            return -1
        value = value * 10 + (at[index] - 48)
    return value


cdef bint lives_on(bytes_at at, Py_ssize_t size) noexcept:
    return size == 10 and memcmp(at, b"keep-alive", 10) == 0


cdef struct Line:
    Py_ssize_t name
    bytes_at value
    Py_ssize_t size


cdef bytes_at cut(bytes_at at, bytes_at stop, Line* line) noexcept:
    """Where the next line begins; NULL: this is no plain field."""
    cdef bytes_at look = at
    while look < stop and TOKEN[look[0]]:
        look += 1
    line.name = look - at
    if look == at or look == stop or look[0] != 58:  # a colon
        return NULL
    look += 1
    while look < stop and (look[0] == 32 or look[0] == 9):
        look += 1
    line.value = look
    while look < stop and TEXT[look[0]]:
        look += 1
    if stop - look < 4 or look[0] != 13 or look[1] != 10:  # behind the last there is one more
        return NULL
    line.size = look - line.value
    if line.size and ((look - 1)[0] == 32 or (look - 1)[0] == 9):
        return NULL
    return look + 2


cdef bint is_strange(long long kind, Line* line, Py_ssize_t* length) noexcept:
    """Is a head with this field for the long road? A Content-Length is read; there is one at most."""
    if kind == C_LENGTH:
        if length[0] >= 0:
            return True
        length[0] = number(line.value, line.size)
        return length[0] < 0
    return kind == C_STRANGE or (kind == C_CONNECTION and not lives_on(line.value, line.size))


cdef inline bytes made(bytes_at at, Py_ssize_t size):
    return PyBytes_FromStringAndSize(<const char*>at, size)


def request(bytes data not None, kinds):
    """A whole request and nothing behind it, or None."""
    cdef bytes_at begin = <bytes_at>PyBytes_AS_STRING(data)
    cdef bytes_at stop = begin + PyBytes_GET_SIZE(data)
    cdef bytes_at at = begin
    cdef bytes_at look
    cdef bytes method = None, host = None
    cdef Py_ssize_t length = -1, size
    cdef long long kind
    cdef Line line
    for known in METHODS:
        size = PyBytes_GET_SIZE(known)
        if stop - at > size and at[size] == 32 and memcmp(at, PyBytes_AS_STRING(known), size) == 0:
            method = known
            at += size + 1
            break
    if method is None or at == stop or at[0] != 47:  # a slash
        return None
    look = at
    while look < stop and TARGET[look[0]]:
        look += 1
    if stop - look < 13 or memcmp(look, b" HTTP/1.1\r\n", 11) != 0:
        return None
    target = made(at, look - at)
    at = look + 11
    cdef list fields = []
    while at[0] != 13:
        look = cut(at, stop, &line)
        if look is NULL or len(fields) == FIELDS_MAX:
            return None
        name, value = made(at, line.name), made(line.value, line.size)
        kind = kind_of(kinds, name)
        if kind == C_HOST:
            if host is not None:
                return None
            host = value
        elif kind and is_strange(kind, &line, &length):
            return None
        fields.append((name, value))
        at = look
    if at[1] != 10 or host is None or stop - at - 2 != max(length, 0):
        return None
    return method, target, fields, host, made(at + 2, stop - at - 2)


def answer(bytes data not None, kinds):
    """A whole answer to anything but HEAD, and nothing behind it, or None."""
    cdef bytes_at begin = <bytes_at>PyBytes_AS_STRING(data)
    cdef bytes_at stop = begin + PyBytes_GET_SIZE(data)
    cdef bytes_at at = begin
    cdef bytes_at look
    cdef Py_ssize_t length = -1, status
    cdef long long kind
    cdef Line line
    if stop - at < 19 or memcmp(at, b"HTTP/1.1 ", 9) != 0 or at[12] != 32:
        return None
    status = number(at + 9, 3)
    if status < 200 or status > 599 or status == 304:
        return None
    at += 13
    look = at
    while look < stop and TEXT[look[0]]:
        look += 1
    if stop - look < 4 or look[0] != 13 or look[1] != 10:
        return None
    reason = made(at, look - at)
    at = look + 2
    cdef list fields = []
    while at[0] != 13:
        look = cut(at, stop, &line)
        if look is NULL or len(fields) == FIELDS_MAX:
            return None
        name = made(at, line.name)
        kind = kind_of(kinds, name)
        if kind == 0:
            fields.append((name, made(line.value, line.size)))
        elif is_strange(kind, &line, &length):
            return None
        at = look
    if at[1] != 10:
        return None
    if status == 204:
        if length >= 0 or stop - at != 2:
            return None
    elif length < 0 or stop - at - 2 != length:
        return None
    return status, reason, fields, made(at + 2, stop - at - 2), None, length


cdef inline bint is_pair(object field) noexcept:
    """Of bytes, and of nothing that only behaves like them."""
    return (
        type(field) is tuple
        and len(<tuple>field) == 2
        and PyBytes_CheckExact((<tuple>field)[0])
        and PyBytes_CheckExact((<tuple>field)[1])
    )


def onward(fields, kinds):
    """What of a request's fields goes on, the host and the key (or None), or None."""
    cdef long long kind, total = 0
    cdef list onwards = []
    host = key = None
    for field in fields:
        if not is_pair(field):
            return None
        kind = kind_of(kinds, (<tuple>field)[0])
        total += kind
        if kind == C_HOST:
            host = (<tuple>field)[1]
        elif kind == C_KEY:
            key = (<tuple>field)[1]
        elif kind == C_LENGTH:
            continue
        onwards.append(field)
    if total >= C_OURS or total & C_COUNT != 1 or total // C_LENGTH & C_COUNT > 1 or total // C_KEY > 1:
        return None
    return onwards, host, key


cdef long long sum_of(list fields, object kinds) except -2:
    """Of their kinds; -1: they are not plain pairs of bytes."""
    cdef long long total = 0
    for field in fields:
        if not is_pair(field):
            return -1
        total += kind_of(kinds, (<tuple>field)[0])
    return total


cdef Py_ssize_t size_of(list fields) noexcept:
    """Of their lines; -1: they are not plain pairs of bytes, any longer."""
    cdef Py_ssize_t size = 0
    for field in fields:
        if not is_pair(field):
            return -1
        size += PyBytes_GET_SIZE((<tuple>field)[0]) + PyBytes_GET_SIZE((<tuple>field)[1]) + 4
    return size


cdef inline char* put(char* to, object what) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(what)
    memcpy(to, PyBytes_AS_STRING(what), size)
    return to + size


cdef char* put_checked(char* to, object what, unsigned char* allowed) noexcept:
    """NULL: a byte in it is not plainly allowed."""
    cdef bytes_at at = <bytes_at>PyBytes_AS_STRING(what)
    cdef bytes_at stop = at + PyBytes_GET_SIZE(what)
    while at < stop:
        if not allowed[at[0]]:
            return NULL
        to[0] = at[0]
        at += 1
        to += 1
    return to


cdef char* put_lines(char* to, list fields) noexcept:
    for field in fields:
        if PyBytes_GET_SIZE((<tuple>field)[0]) == 0:
            return NULL
        to = put_checked(to, (<tuple>field)[0], TOKEN)
        if to is NULL:
            return NULL
        to[0], to[1] = 58, 32
        to = put_checked(to + 2, (<tuple>field)[1], TEXT)
        if to is NULL:
            return NULL
        to[0], to[1] = 13, 10
        to += 2
    return to


cdef char* put_number(char* to, Py_ssize_t number) noexcept:
    cdef char[20] digits
    cdef int count = 0
    while True:
        digits[count] = 48 + number % 10
        count += 1
        number //= 10
        if number == 0:
            break
    while count:
        count -= 1
        to[0] = digits[count]
        to += 1
    return to


cdef char* put_end(char* to, Py_ssize_t length) noexcept:
    if length >= 0:
        memcpy(to, b"Content-Length: ", 16)
        to = put_number(to + 16, length)
        to[0], to[1] = 13, 10
        to += 2
    to[0], to[1] = 13, 10
    return to + 2


def request_head(bytes method not None, bytes target not None, fields, Py_ssize_t length, kinds):
    """A head with Content-Length (none: -1), or None. `kinds`: 0 goes, HOST there is one of."""
    cdef Py_ssize_t size
    if type(fields) is not list or method not in METHODS or not target:
        return None
    if sum_of(<list>fields, kinds) != C_HOST:
        return None
    size = size_of(<list>fields)
    if size < 0:
        return None
    size += PyBytes_GET_SIZE(method) + PyBytes_GET_SIZE(target) + ROOM
    cdef bytes room = PyBytes_FromStringAndSize(NULL, size)
    cdef char* begin = PyBytes_AS_STRING(room)
    cdef char* to = put(begin, method)
    to[0] = 32
    to = put_checked(to + 1, target, TARGET)
    if to is NULL:
        return None
    memcpy(to, b" HTTP/1.1\r\n", 11)
    to = put_lines(to + 11, <list>fields)
    if to is NULL:
        return None
    return room[: put_end(to, length) - begin]


def answer_head(bytes line not None, fields, bytes date not None, Py_ssize_t length, kinds):
    """A head with Content-Length (none: -1), and `date` where it has none; or None.

    `kinds`: 0 goes, HOST is a Date, all else is not ordinary."""
    cdef long long total
    cdef Py_ssize_t size
    if type(fields) is not list:
        return None
    total = sum_of(<list>fields, kinds)
    if total < 0 or total > C_HOST:
        return None
    size = size_of(<list>fields)
    if size < 0:
        return None
    size += PyBytes_GET_SIZE(line) + PyBytes_GET_SIZE(date) + ROOM
    cdef bytes room = PyBytes_FromStringAndSize(NULL, size)
    cdef char* begin = PyBytes_AS_STRING(room)
    cdef char* to = put_lines(put(begin, line), <list>fields)
    if to is NULL:
        return None
    if total == 0:
        to = put(to, date)
    return room[: put_end(to, length) - begin]
