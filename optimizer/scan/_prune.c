/* The extension module that wraps the kernel. All policy comes from Python: bytes in, pruned output out.
 *
 *     pruner = _prune.Pruner(fallback, members, record_key, max_key_bytes, max_depth, objects=())
 *     data, spans, offsets, pending, taken = pruner.feed(chunk)
 *     data, spans, offsets, pending, _ = pruner.finish()
 *
 * `data` is the next bytes of the pruned stream; `spans` a list of (start, end, count, longest, kind); `offsets` pairs
 * of native 64-bit integers (offset in the pruned stream, offset in the input); `pending` as in rp_pending; `taken` the
 * number of bytes of the chunk that were read. The caller passes the rest to the next call, so that memory is bounded.
 * `objects` are those that are kept in records, as (name, first, count): see rp_object; index 0 means none.
 * The GIL is released while the kernel works. Stable ABI of 3.11, whichever later Python compiles it. So no format has
 * a `#`, which fails on 3.12 if it was compiled for 3.13, and Py_RETURN_NONE is not used: headers of 3.12 and newer
 * let it take no reference, so that 3.11 would free None.
 */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <string.h>

#include "kernel/prune.h"

/* The output of a call is one batch, and only while the kernel works can the thread that inflates take the GIL: smaller
 * outputs cost calls, and with larger ones that thread is kept waiting. */
enum { OUTPUT_SIZE = 96 * 1024, OFFSET_SIZE = 16 * 1024, SPAN_SIZE = 1024, MAX_MEMBERS = 16, MAX_OBJECTS = 512 };

typedef struct {
    PyObject_HEAD
    rp_state state;
    rp_policy policy;
    rp_member members[MAX_MEMBERS];
    PyObject *names[MAX_MEMBERS + 1]; /* own the bytes that the policy points to; the last is the record key */
    rp_object *objects;
    PyObject *object_names; /* owns the bytes that these point to */
    rp_status status;
    int busy; /* a thread is inside the kernel */
    uint8_t *bytes;
    rp_offset *offsets;
    rp_span *spans;
} Pruner;

static PyObject *as_object(Pruner *self) { return (PyObject *)self; }

static int take_name(PyObject *value, PyObject **owner, const uint8_t **name, size_t *length) {
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(value, &bytes, &size) < 0) return -1;
    *owner = Py_NewRef(value);
    *name = (const uint8_t *)bytes;
    *length = (size_t)size;
    return 0;
}

static int take_layout(PyObject *value, rp_layout *layout) {
    unsigned int unit_level, kept_levels;
    int spans;
    if (!PyTuple_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "a layout is a tuple: unit_level, kept_levels, spans");
        return -1;
    }
    if (!PyArg_ParseTuple(value, "IIp;a layout is unit_level, kept_levels, spans", &unit_level, &kept_levels, &spans))
        return -1;
    if (unit_level < 1 || unit_level > RP_MAX_UNIT_LEVEL || kept_levels < 1 || kept_levels > 1000) {
        PyErr_Format(PyExc_ValueError, "unit_level=%u is not 1 to %d, or kept_levels=%u not 1 to 1000", unit_level,
                     RP_MAX_UNIT_LEVEL, kept_levels);
        return -1;
    }
    *layout = (rp_layout){unit_level, kept_levels, (uint32_t)spans};
    return 0;
}

static int take_members(Pruner *self, PyObject *members) {
    PyObject *name, *layout;
    Py_ssize_t place = 0;
    if (PyDict_Size(members) > MAX_MEMBERS) {
        PyErr_Format(PyExc_ValueError, "more than %d members", MAX_MEMBERS);
        return -1;
    }
    while (PyDict_Next(members, &place, &name, &layout)) {
        const size_t count = self->policy.member_count;
        rp_member *member = &self->members[count];
        if (take_name(name, &self->names[count], &member->name, &member->length) < 0) return -1;
        self->policy.member_count++;
        if (take_layout(layout, &member->layout) < 0) return -1;
    }
    self->policy.members = self->members;
    return 0;
}

/* Take a tuple of objects; indexes are checked, so that the kernel need not. */
static int take_objects(Pruner *self, PyObject *objects) {
    const Py_ssize_t count = PyTuple_Size(objects);
    if (count <= 0) return (int)count;
    if (count > MAX_OBJECTS) {
        PyErr_Format(PyExc_ValueError, "more than %d objects", MAX_OBJECTS);
        return -1;
    }
    self->object_names = Py_NewRef(objects);
    self->objects = PyMem_Calloc((size_t)count, sizeof *self->objects);
    if (self->objects == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name;
        unsigned int first, inside;
        PyObject *object = PyTuple_GetItem(objects, i);
        if (object == NULL || !PyTuple_Check(object)) {
            PyErr_SetString(PyExc_TypeError, "an object is a tuple: name, first, count");
            return -1;
        }
        if (!PyArg_ParseTuple(object, "SII;an object is name, first, count", &name, &first, &inside)) return -1;
        if (inside && (first <= (size_t)i || first + (size_t)inside > (size_t)count)) {
            PyErr_SetString(PyExc_ValueError, "the objects inside an object come after it");
            return -1;
        }
        self->objects[i] = (rp_object){
            (const uint8_t *)PyBytes_AsString(name), (size_t)PyBytes_Size(name), (uint16_t)first, (uint16_t)inside};
    }
    self->policy.objects = self->objects;
    return 0;
}

static PyObject *pruner_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *fallback, *members, *record_key, *objects = NULL;
    unsigned long long max_key_bytes, max_depth;
    if (kwargs != NULL && PyDict_Size(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "Pruner takes its arguments by place");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OO!OKK|O!:Pruner", &fallback, &PyDict_Type, &members, &record_key, &max_key_bytes,
                          &max_depth, &PyTuple_Type, &objects))
        return NULL;
    const allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Pruner *self = (Pruner *)allocate(type, 0);
    if (self == NULL) return NULL;
    self->policy.max_key_bytes = max_key_bytes;
    self->policy.max_depth = max_depth;
    if (take_layout(fallback, &self->policy.fallback) < 0 || take_members(self, members) < 0) goto failed;
    if (record_key != Py_None && take_name(record_key, &self->names[MAX_MEMBERS], &self->policy.record_key,
                                           &self->policy.record_key_length) < 0)
        goto failed;
    if (objects != NULL && take_objects(self, objects) < 0) goto failed;
    self->bytes = PyMem_Malloc(OUTPUT_SIZE);
    self->offsets = PyMem_Malloc(OFFSET_SIZE * sizeof *self->offsets);
    self->spans = PyMem_Malloc(SPAN_SIZE * sizeof *self->spans);
    if (self->bytes == NULL || self->offsets == NULL || self->spans == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    return as_object(self);
failed:
    Py_DECREF(self);
    return NULL;
}

static void pruner_dealloc(PyObject *object) {
    Pruner *self = (Pruner *)object;
    PyTypeObject *type = Py_TYPE(object);
    const freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    for (int i = 0; i <= MAX_MEMBERS; i++) Py_XDECREF(self->names[i]);
    Py_XDECREF(self->object_names);
    PyMem_Free(self->objects);
    PyMem_Free(self->bytes);
    PyMem_Free(self->offsets);
    PyMem_Free(self->spans);
    release(object);
    Py_DECREF(type);
}

static rp_output new_output(const Pruner *self) {
    return (rp_output){.bytes = self->bytes, .size = OUTPUT_SIZE, .offsets = self->offsets, .offset_size = OFFSET_SIZE,
                       .spans = self->spans, .span_size = SPAN_SIZE};
}

static PyObject *spans_of(const rp_output *output) {
    PyObject *spans = PyList_New((Py_ssize_t)output->span_count);
    if (spans == NULL) return NULL;
    for (size_t i = 0; i < output->span_count; i++) {
        const rp_span *span = &output->spans[i];
        PyObject *entry = Py_BuildValue("(KKKKK)", (unsigned long long)span->start, (unsigned long long)span->end,
                                        (unsigned long long)span->count, (unsigned long long)span->longest,
                                        (unsigned long long)span->kind);
        if (entry == NULL || PyList_SetItem(spans, (Py_ssize_t)i, entry) < 0) {
            Py_DECREF(spans);
            return NULL;
        }
    }
    return spans;
}

/* What the kernel wrote, as a tuple. */
static PyObject *as_tuple(Pruner *self, const rp_output *output, size_t taken) {
    PyObject *result = NULL, *spans = spans_of(output);
    PyObject *data = PyBytes_FromStringAndSize((const char *)output->bytes, (Py_ssize_t)output->count);
    PyObject *offsets = PyBytes_FromStringAndSize((const char *)output->offsets,
                                                (Py_ssize_t)(output->offset_count * sizeof *output->offsets));
    if (spans != NULL && data != NULL && offsets != NULL)
        result = Py_BuildValue("(OOOKn)", data, spans, offsets, (unsigned long long)rp_pending(&self->state),
                              (Py_ssize_t)taken);
    Py_XDECREF(spans);
    Py_XDECREF(data);
    Py_XDECREF(offsets);
    return result;
}

static PyObject *pruner_feed(PyObject *object, PyObject *chunk) {
    Pruner *self = (Pruner *)object;
    Py_buffer view;
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "feed is running in another thread");
        return NULL;
    }
    if (PyObject_GetBuffer(chunk, &view, PyBUF_SIMPLE) < 0) return NULL;
    rp_output output = new_output(self);
    size_t taken = 0;
    if (self->status <= RP_FULL) {
        self->busy = 1;
        Py_BEGIN_ALLOW_THREADS
        self->status = rp_feed(&self->state, &self->policy, view.buf, (size_t)view.len, &taken, &output);
        Py_END_ALLOW_THREADS
        self->busy = 0;
    }
    PyBuffer_Release(&view);
    return as_tuple(self, &output, taken);
}

static PyObject *pruner_finish(PyObject *object, PyObject *unused) {
    (void)unused;
    Pruner *self = (Pruner *)object;
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "feed is running in another thread");
        return NULL;
    }
    rp_output output = new_output(self);
    rp_finish(&self->state, &output);
    return as_tuple(self, &output, 0);
}

static PyObject *get_error(PyObject *object, void *closure) {
    (void)closure;
    const Pruner *self = (const Pruner *)object;
    const char *name = self->status == RP_NEVER_OPENED ? "never opened"
                       : self->status == RP_TOO_DEEP   ? "too deep"
                       : self->status == RP_UNBALANCED ? "unbalanced"
                                                       : NULL;
    if (name == NULL) return Py_NewRef(Py_None);
    return Py_BuildValue("(sK)", name, (unsigned long long)self->state.error_offset);
}

static PyObject *get_consumed(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(((const Pruner *)object)->state.consumed);
}

static PyObject *get_depth(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(((const Pruner *)object)->state.depth);
}

static PyObject *get_in_string(PyObject *object, void *closure) {
    (void)closure;
    return PyBool_FromLong(((const Pruner *)object)->state.in_string != 0);
}

static PyMethodDef pruner_methods[] = {
    {"feed", pruner_feed, METH_O, "Process bytes of any buffer; return the output, and how many bytes were read."},
    {"finish", pruner_finish, METH_NOARGS, "End the input; return the last output."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pruner_attributes[] = {
    {"error", get_error, NULL, "None, or what ended the scan and at which byte of the input.", NULL},
    {"consumed", get_consumed, NULL, "Bytes taken so far.", NULL},
    {"depth", get_depth, NULL, "Containers that are open.", NULL},
    {"in_string", get_in_string, NULL, "Whether a string is open.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pruner_slots[] = {
    {Py_tp_new, pruner_new},
    {Py_tp_dealloc, pruner_dealloc},
    {Py_tp_methods, pruner_methods},
    {Py_tp_getset, pruner_attributes},
    {Py_tp_doc, "Pruner(fallback, members, record_key, max_key_bytes, max_depth, objects=())"},
    {0, NULL},
};

static PyType_Spec pruner_spec = {
    .name = "optimizer.scan._prune.Pruner",
    .basicsize = sizeof(Pruner),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pruner_slots,
};

static int prune_exec(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &pruner_spec, NULL);
    if (type == NULL) return -1;
    const int added = PyModule_AddObjectRef(module, "Pruner", type);
    Py_DECREF(type);
    if (added < 0) return -1;
    return PyModule_AddStringConstant(module, "VARIANT", rp_variant());
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, prune_exec},
    {0, NULL},
};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "optimizer.scan._prune",
    .m_doc = "The structural pruner, compiled.",
    .m_size = 0,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__prune(void) { return PyModuleDef_Init(&module); }
