/*
 * A libcuda.so.1 over host memory, for tests of what a program does with the CUDA driver.
 *
 * Strict where the real one is silent. What is queued runs when somebody waits for it, and nothing else does. Two things
 * that use the same memory or the same engine, one of them writing, must have an order: by their stream, by an event, or
 * because somebody waited in between. Memory that is not allocated, a wait for an event that was never recorded, work
 * of another context, and whatever goes while queued work uses it, are violations: the call fails with
 * CUDA_ERROR_UNKNOWN, whose text says what was wrong, and fake_violation() keeps the first one. Freed memory is poisoned
 * and never reused. What the driver itself refuses has the driver's code.
 *
 * Time: every call takes the host 20 microseconds, and every copy and run takes the device half a millisecond, from when
 * it was queued or, where that is later, from when what it comes after has ended. An event on an idle stream therefore
 * has the time at which the host recorded it.
 *
 * cuda.h declares every function below, so the compiler holds each prototype against NVIDIA's; what begins with fake_
 * is for the tests.
 */
#define __CUDA_API_VERSION_INTERNAL /* declares the functions under the names that the library exports */
#include <cuda.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CALL_US = 20, WORK_US = 500 };
enum { MAX_SHOWN = 8, MAX_USES = 8, MAX_RECORDED = 64, MAX_DEPTH = 32, MAX_FAILURES = 8 };

typedef enum { CONTEXT, DEVICE, HOST, STREAM, EVENT, GRAPH, EXEC, ENGINE, DEFAULT_STREAM, KINDS } Kind;
static const char *const kind_names[KINDS] = {"context", "device", "host",   "stream",        "event",
                                              "graph",   "exec",   "engine", "default stream"};

typedef struct Use {
    uintptr_t start, end;
    bool writes;
} Use;

/* One thing on a stream: a copy, the work of an engine, or only a place in the order. */
typedef struct Node {
    const char *name;
    void *to;
    const void *from;
    size_t size;
    void (*work)(void *);
    void *data;
    Use uses[MAX_USES];
    int n_uses;
    struct Node *after[2]; /* what was on the stream before, and what an event stands for */
    bool done;
    long queued_us, ended_us;
    unsigned visit;
} Node;

/* Whatever has a handle, which is its own address; memory has that of its first byte. */
typedef struct Object {
    Kind kind;
    bool alive, mapped, capturing, broken;
    struct Object *context;
    unsigned char *bytes;
    size_t size;
    unsigned flags;
    Node *last; /* of a stream; of an event what it stands for */
    CUstreamCaptureMode mode;
    pthread_t capturer;
    Node *nodes[MAX_RECORDED]; /* of a capture and of a graph */
    int n_nodes, runs;
} Object;

typedef struct Failure {
    char name[64];
    int countdown;
    CUresult code;
} Failure;

CUresult fake_queue(Object *engine, CUstream handle, void (*work)(void *), void *data, int n, const uintptr_t *starts,
                    const size_t *sizes, const int *writes);
Object *fake_engine(void);
CUresult fake_close_engine(Object *engine);
CUresult fake_touch(uintptr_t address, size_t size);
CUstream fake_blocking_stream(void);
const char *fake_violation(void);
void fake_reset(void);
void fake_set(const char *name, int value);
void fake_fail(const char *name, int countdown, CUresult code);
int fake_list(const char *kind, uintptr_t *handles, int room);
int fake_capturing(void);
int fake_records(CUstream handle);
Object *fake_current(void);
size_t fake_room(uintptr_t address);
int fake_nodes(void);
const char *fake_node(int index, int *done);
int fake_is_behind(int node, int other);

static pthread_mutex_t mutex;
static struct { int devices, version, integrated, initialised; } machine;
static int shown[MAX_SHOWN], n_shown; /* what CUDA_VISIBLE_DEVICES left of the devices */
static Object **objects;
static Node **nodes;
static int n_objects, n_nodes, n_failures, retained;
static long now_us; /* the host's clock */
static unsigned epoch, visits;
static Failure failures[MAX_FAILURES];
static Object the_primary, *const primary = &the_primary;
static char violation[256];
static _Thread_local Object *stack[MAX_DEPTH];
static _Thread_local int depth;
static _Thread_local unsigned stack_epoch;

/* --- entering and failing ------------------------------------------------------------------------------------------ */

static void unlock(int *held) { (void)held, pthread_mutex_unlock(&mutex); }

static int lock(void) {
    pthread_mutex_lock(&mutex); /* recursive: work that is run may call back */
    if (stack_epoch != epoch) depth = 0, stack_epoch = epoch;
    return 0;
}

/* Whether a test asked that this call fails, or the driver was not initialised. */
static CUresult refused(const char *name) {
    for (Failure *failure = failures; failure < failures + n_failures; failure++)
        if (!strcmp(failure->name, name) && --failure->countdown == 0) return failure->code;
    return machine.initialised || !strncmp(name, "cuInit", 6) || !strncmp(name, "cuGet", 5) ||
                   !strncmp(name, "cuDriver", 8)
               ? CUDA_SUCCESS
               : CUDA_ERROR_NOT_INITIALIZED;
}

#define LOCKED __attribute__((cleanup(unlock), unused)) int held = lock()
#define ENTER                                   \
    LOCKED;                                     \
    do {                                        \
        CUresult code_ = refused(__func__);     \
        if (code_ != CUDA_SUCCESS) return code_; \
        now_us += CALL_US;                      \
    } while (0)
#define CHECK(call)                              \
    do {                                         \
        CUresult code_ = (call);                 \
        if (code_ != CUDA_SUCCESS) return code_; \
    } while (0)
#define IN_CONTEXT \
    ENTER;         \
    if (!current()) return CUDA_ERROR_INVALID_CONTEXT

__attribute__((format(printf, 1, 2))) static CUresult violated(const char *format, ...) {
    if (!*violation) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(violation, sizeof violation, format, arguments);
        va_end(arguments);
    }
    return CUDA_ERROR_UNKNOWN;
}

static Object *current(void) { return depth ? stack[depth - 1] : NULL; }

/* --- objects ------------------------------------------------------------------------------------------------------- */

static Object *make(Kind kind) {
    Object *object = calloc(1, sizeof *object);
    objects = realloc(objects, (size_t)(n_objects + 1) * sizeof *objects);
    objects[n_objects++] = object;
    object->kind = kind, object->alive = true, object->context = current();
    return object;
}

/* The live object of a handle in the current context, or NULL. */
static Object *find(Kind kind, const void *handle) {
    for (int i = n_objects; i--;)
        if (objects[i] == handle && objects[i]->kind == kind && objects[i]->alive)
            return kind == CONTEXT || objects[i]->context == current() ? objects[i] : NULL;
    return NULL;
}

/* A stream of the current context. The default ones are there from the beginning: one that threads share, and one for
 * each thread, of which there is one here. */
static Object *stream_of(CUstream handle) {
    if (handle > CU_STREAM_PER_THREAD) return find(STREAM, handle);
    unsigned number = handle == CU_STREAM_PER_THREAD ? 2 : 1;
    for (int i = n_objects; i--;)
        if (objects[i]->kind == DEFAULT_STREAM && objects[i]->flags == number && objects[i]->context == current())
            return objects[i];
    Object *stream = make(DEFAULT_STREAM);
    stream->flags = number;
    return stream;
}

static Object *block_of(uintptr_t address) {
    for (int i = n_objects; i--;) {
        Object *object = objects[i];
        uintptr_t start = (uintptr_t)object->bytes;
        if (object->alive && object->bytes && address >= start && address < start + object->size) return object;
    }
    return NULL;
}

/* Whether the device or the host can use so many bytes at an address. */
static bool holds(uintptr_t address, size_t size, bool by_device) {
    Object *block = block_of(address);
    bool reachable = block && (by_device ? block->kind == DEVICE || block->mapped : block->kind == HOST);
    return reachable && block->context == current() && address + size <= (uintptr_t)block->bytes + block->size;
}

static Node *user_in_flight(uintptr_t start, uintptr_t end) {
    for (int i = 0; i < n_nodes; i++)
        for (int k = 0; !nodes[i]->done && k < nodes[i]->n_uses; k++)
            if (nodes[i]->uses[k].start < end && start < nodes[i]->uses[k].end) return nodes[i];
    return NULL;
}

static CUresult expect_idle(uintptr_t start, size_t size, const char *what, const char *how) {
    Node *user = user_in_flight(start, start + size);
    return user ? violated("%s is %s while %s uses it", what, how, user->name) : CUDA_SUCCESS;
}

/* --- order --------------------------------------------------------------------------------------------------------- */

static bool reaches(Node *node, const Node *other) {
    if (node == other) return true;
    if (!node || node->visit == visits) return false;
    node->visit = visits;
    return reaches(node->after[0], other) || reaches(node->after[1], other);
}

/* Whether the other one has certainly ended when this one runs. */
static bool is_behind(Node *node, const Node *other) {
    visits++;
    return other->done || reaches(node, other);
}

static CUresult finish(Node *node) {
    if (!node || node->done) return CUDA_SUCCESS;
    node->ended_us = node->queued_us;
    for (int i = 0; i < 2; i++) {
        CHECK(finish(node->after[i]));
        if (node->after[i] && node->after[i]->ended_us > node->ended_us) node->ended_us = node->after[i]->ended_us;
        node->after[i] = NULL;
    }
    if (node->size && (!block_of((uintptr_t)node->to) || !block_of((uintptr_t)node->from)))
        return violated("%s with freed memory", node->name);
    if (node->size) memcpy(node->to, node->from, node->size);
    if (node->work) node->work(node->data);
    if (node->size || node->work) node->ended_us += WORK_US;
    return node->done = true, CUDA_SUCCESS;
}

/* The host waits. */
static CUresult await(Node *node) {
    CHECK(finish(node));
    if (node && node->ended_us > now_us) now_us = node->ended_us;
    return CUDA_SUCCESS;
}

/* Whether a stream is the default one that threads share, and one that waits for it records: that breaks. */
static CUresult implicit(const Object *stream) {
    for (int i = 0; stream->kind == DEFAULT_STREAM && stream->flags == 1 && i < n_objects; i++) {
        Object *other = objects[i];
        bool blocking = other->kind == STREAM && other->flags != CU_STREAM_NON_BLOCKING;
        if (blocking && other->capturing) return other->broken = true, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    return CUDA_SUCCESS;
}

static CUresult push(Object *stream, Node made) {
    CHECK(implicit(stream));
    Node *node = malloc(sizeof *node);
    *node = made;
    node->after[0] = stream->last, node->queued_us = now_us;
    for (int i = 0; i < n_nodes; i++)
        for (int a = 0; !nodes[i]->done && a < nodes[i]->n_uses; a++)
            for (int b = 0; b < node->n_uses; b++) {
                Use *one = &nodes[i]->uses[a], *two = &node->uses[b];
                if (one->start < two->end && two->start < one->end && (one->writes || two->writes) &&
                    !is_behind(node, nodes[i])) {
                    violated("%s and %s use %#lx at once", node->name, nodes[i]->name, (unsigned long)two->start);
                    free(node);
                    return CUDA_ERROR_UNKNOWN;
                }
            }
    nodes = realloc(nodes, (size_t)(n_nodes + 1) * sizeof *nodes);
    nodes[n_nodes++] = stream->last = node;
    return CUDA_SUCCESS;
}

/* Add work to a stream, or to what is recorded of it. */
static CUresult queue(Object *stream, Node made) {
    if (!stream->capturing) return push(stream, made);
    if (stream->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream->n_nodes == MAX_RECORDED) return violated("more nodes than a graph has room for");
    Node *node = stream->nodes[stream->n_nodes++] = malloc(sizeof *node);
    *node = made;
    return CUDA_SUCCESS;
}

/* What may wait for the device: a capture that forbids it breaks. */
static CUresult unsafe(void) {
    for (int i = 0; i < n_objects; i++) {
        Object *stream = objects[i];
        bool mine = stream->capturing && pthread_equal(stream->capturer, pthread_self());
        if (stream->capturing && (stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL ||
                                  (mine && stream->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))) {
            stream->broken = true;
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return CUDA_SUCCESS;
}

/* --- errors, devices, contexts ------------------------------------------------------------------------------------- */

static const struct { CUresult code; const char *name, *text; } errors[] = {
#define ERROR(name, text) {name, #name, text}
    ERROR(CUDA_SUCCESS, "no error"), ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"), ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_STUB_LIBRARY, "CUDA driver is a stub library"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"), ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "system has unsupported display driver / cuda driver combination"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture from another thread"),
    ERROR(CUDA_ERROR_UNKNOWN, violation),
};

static CUresult error_of(CUresult code, const char **text, bool name) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) return *text = name ? errors[i].name : errors[i].text, CUDA_SUCCESS;
    return *text = NULL, CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuGetErrorName(CUresult error, const char **text) { return error_of(error, text, true); }
CUresult CUDAAPI cuGetErrorString(CUresult error, const char **text) { return error_of(error, text, false); }

/* GPU-00000001-… is the second GPU; behind the last one comes a part of it, MIG-…, which is seen by its name only. */
static void uuid_text(int device, char text[64]) {
    snprintf(text, 64, "%s-%08x-0000-0000-0000-000000000000", device < machine.devices ? "GPU" : "MIG", device);
}

/* The device of one entry of CUDA_VISIBLE_DEVICES: a number, or a UUID or its beginning; -1 where there is none. */
static int device_named(const char *name, size_t size) {
    char text[64];
    for (int device = 0; size > 4 && device <= machine.devices; device++)
        if (uuid_text(device, text), !strncmp(text, name, size)) return device;
    bool number = size && strspn(name, "0123456789") >= size;
    return number && atoi(name) < machine.devices ? atoi(name) : -1;
}

static void look_at_the_environment(void) {
    const char *rest = getenv("CUDA_VISIBLE_DEVICES");
    for (n_shown = 0; !rest && n_shown < machine.devices; n_shown++) shown[n_shown] = n_shown;
    while (rest && *rest && n_shown < MAX_SHOWN) {
        size_t size = strcspn(rest, ",");
        if ((shown[n_shown] = device_named(rest, size)) < 0) break; /* what comes behind it is not seen either */
        n_shown++, rest += size + (rest[size] == ',');
    }
}

CUresult CUDAAPI cuInit(unsigned int flags) {
    ENTER;
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (!machine.initialised) look_at_the_environment();
    if (getenv("FAKE_EMPTY")) n_shown = 0; /* and all goes well */
    else if (!n_shown) return CUDA_ERROR_NO_DEVICE;
    return machine.initialised = 1, CUDA_SUCCESS;
}

CUresult CUDAAPI cuDriverGetVersion(int *version) {
    ENTER;
    return *version = machine.version, CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER;
    return *device = ordinal, ordinal < n_shown ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult CUDAAPI cuDeviceGetCount(int *count) {
    ENTER;
    return *count = n_shown, CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetName(char *name, int room, CUdevice device) {
    ENTER;
    if (device >= n_shown) return CUDA_ERROR_INVALID_DEVICE;
    bool part = shown[device] == machine.devices;
    snprintf(name, (size_t)room, "Fake GPU %d%s", shown[device] - part, part ? " MIG 1g.5gb" : "");
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    ENTER;
    if (device >= n_shown) return CUDA_ERROR_INVALID_DEVICE;
    return *uuid = (CUuuid){{0, 0, 0, (char)shown[device]}}, CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetPCIBusId(char *bus, int room, CUdevice device) {
    ENTER;
    if (device >= n_shown || room < 13) return CUDA_ERROR_INVALID_VALUE;
    snprintf(bus, (size_t)room, "0000:%02x:00.0", 0x65 + shown[device] - (shown[device] == machine.devices));
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    ENTER;
    if (device >= n_shown) return CUDA_ERROR_INVALID_DEVICE;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) return *value = 8, CUDA_SUCCESS;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) return *value = 7, CUDA_SUCCESS;
    if (attribute == CU_DEVICE_ATTRIBUTE_WARP_SIZE) return *value = 32, CUDA_SUCCESS;
    if (attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) return *value = 8, CUDA_SUCCESS;
    return *value = attribute == CU_DEVICE_ATTRIBUTE_INTEGRATED ? machine.integrated : 0, CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    ENTER;
    return *major = 8, *minor = 7, device < n_shown ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult CUDAAPI cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    ENTER;
    return *bytes = 1ull << 33, device < n_shown ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER;
    if (device >= n_shown) return CUDA_ERROR_INVALID_DEVICE;
    primary->alive = true, retained++;
    return *context = (CUcontext)primary, CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER;
    if (device >= n_shown || !retained) return CUDA_ERROR_INVALID_CONTEXT;
    if (--retained) return CUDA_SUCCESS;
    primary->alive = false;
    for (int i = 0; i < depth; i++)
        if (stack[i] == primary) return violated("the primary context goes while it is current");
    for (int i = 0; i < n_objects; i++)
        if (objects[i]->alive && objects[i]->context == primary && objects[i]->kind != CONTEXT &&
            objects[i]->kind != DEFAULT_STREAM)
            return violated("the primary context goes and leaves a %s", kind_names[objects[i]->kind]);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device) {
    ENTER;
    if (flags || device >= n_shown || depth == MAX_DEPTH) return CUDA_ERROR_INVALID_VALUE;
    Object *made = stack[depth++] = make(CONTEXT);
    return *context = (CUcontext)made, CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxDestroy_v2(CUcontext context) {
    ENTER;
    Object *object = find(CONTEXT, context);
    if (!object || object == primary) return CUDA_ERROR_INVALID_CONTEXT;
    if (current() == object) depth--;
    for (int i = 0; i < n_objects; i++)
        if (objects[i]->context == object) objects[i]->alive = false; /* what was made in it goes too */
    return object->alive = false, CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPushCurrent_v2(CUcontext context) {
    ENTER;
    Object *object = find(CONTEXT, context);
    if (!object) return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == MAX_DEPTH) return violated("contexts are pushed and never popped");
    return stack[depth++] = object, CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxPopCurrent_v2(CUcontext *context) {
    IN_CONTEXT;
    return *context = (CUcontext)stack[--depth], CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetDevice(CUdevice *device) {
    IN_CONTEXT;
    return *device = 0, CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxSynchronize(void) {
    IN_CONTEXT;
    CHECK(unsafe());
    for (int i = 0; i < n_nodes; i++) CHECK(await(nodes[i])); /* those of other contexts too, which harms nothing here */
    return CUDA_SUCCESS;
}

/* --- memory -------------------------------------------------------------------------------------------------------- */

static CUresult take(Kind kind, size_t size, bool mapped, unsigned char **bytes) {
    CHECK(unsafe());
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    CHECK(refused("allocation")); /* on the host and on the device, counted together */
    Object *block = make(kind);
    block->bytes = *bytes = aligned_alloc(256, (size + 255) / 256 * 256);
    block->size = size, block->mapped = mapped;
    return CUDA_SUCCESS;
}

static CUresult give(Kind kind, uintptr_t address) {
    CHECK(unsafe());
    Object *block = block_of(address);
    if (!block || block->kind != kind || (uintptr_t)block->bytes != address) return CUDA_ERROR_INVALID_VALUE;
    if (block->context != current()) return CUDA_ERROR_INVALID_CONTEXT;
    CHECK(expect_idle(address, block->size, "memory", "freed"));
    memset(block->bytes, 0xDD, block->size);
    return block->alive = false, CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    IN_CONTEXT;
    return *free_bytes = 1ull << 32, *total = 1ull << 33, CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    IN_CONTEXT;
    unsigned char *bytes = NULL;
    CHECK(take(DEVICE, size, false, &bytes));
    return *address = (CUdeviceptr)bytes, CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemFree_v2(CUdeviceptr address) {
    IN_CONTEXT;
    return give(DEVICE, (uintptr_t)address);
}

CUresult CUDAAPI cuMemHostAlloc(void **address, size_t size, unsigned int flags) {
    IN_CONTEXT;
    unsigned char *bytes = NULL;
    CHECK(take(HOST, size, flags & CU_MEMHOSTALLOC_DEVICEMAP, &bytes));
    return *address = bytes, CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *host, unsigned int flags) {
    IN_CONTEXT;
    if (flags || !holds((uintptr_t)host, 1, true)) return CUDA_ERROR_INVALID_VALUE;
    return *address = (CUdeviceptr)host, CUDA_SUCCESS;
}

CUresult CUDAAPI cuMemFreeHost(void *address) {
    IN_CONTEXT;
    return give(HOST, (uintptr_t)address);
}

CUresult CUDAAPI cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr address) {
    ENTER;
    Object *block = block_of((uintptr_t)address);
    if (!block) return CUDA_ERROR_INVALID_VALUE;
    if (attribute == CU_POINTER_ATTRIBUTE_CONTEXT) return *(Object **)data = block->context, CUDA_SUCCESS;
    if (attribute != CU_POINTER_ATTRIBUTE_MEMORY_TYPE) return CUDA_ERROR_NOT_SUPPORTED;
    *(unsigned *)data = block->kind == HOST ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    return CUDA_SUCCESS;
}

static CUresult copy(const char *name, uintptr_t to, bool to_device, uintptr_t from, bool from_device, size_t size,
                     CUstream handle) {
    Object *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!holds(to, size, to_device) || !holds(from, size, from_device))
        return violated("%s of %zu bytes that are not allocated, or not page-locked", name, size);
    Node node = {.name = name, .to = (void *)to, .from = (const void *)from, .size = size, .n_uses = 2};
    node.uses[0] = (Use){to, to + size, true};
    node.uses[1] = (Use){from, from + size, false};
    return queue(stream, node);
}

CUresult CUDAAPI cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    IN_CONTEXT;
    return copy("upload", (uintptr_t)to, true, (uintptr_t)from, false, size, stream);
}

CUresult CUDAAPI cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    IN_CONTEXT;
    return copy("download", (uintptr_t)to, false, (uintptr_t)from, true, size, stream);
}

CUresult CUDAAPI cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    IN_CONTEXT;
    return copy("copy", (uintptr_t)to, true, (uintptr_t)from, true, size, stream);
}

/* --- streams and events -------------------------------------------------------------------------------------------- */

CUresult CUDAAPI cuStreamCreate(CUstream *stream, unsigned int flags) {
    IN_CONTEXT;
    if (flags != CU_STREAM_NON_BLOCKING) return violated("a stream that waits for the default one");
    Object *made = make(STREAM);
    made->flags = flags;
    return *stream = (CUstream)made, CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamSynchronize(CUstream handle) {
    IN_CONTEXT;
    Object *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capturing) return stream->broken = true, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    CHECK(implicit(stream));
    CHECK(unsafe());
    return await(stream->last);
}

CUresult CUDAAPI cuStreamDestroy_v2(CUstream handle) {
    IN_CONTEXT;
    Object *stream = find(STREAM, handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->last && !stream->last->done) return violated("a stream is destroyed while work is queued");
    return stream->alive = false, CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventCreate(CUevent *event, unsigned int flags) {
    IN_CONTEXT;
    Object *made = make(EVENT);
    made->flags = flags;
    return *event = (CUevent)made, CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventRecord(CUevent handle, CUstream on) {
    IN_CONTEXT;
    Object *event = find(EVENT, handle), *stream = stream_of(on);
    if (!event || !stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capturing) return violated("an event is recorded in a capture");
    CHECK(push(stream, (Node){.name = "record"}));
    return event->last = stream->last, CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamWaitEvent(CUstream on, CUevent handle, unsigned int flags) {
    IN_CONTEXT;
    Object *event = find(EVENT, handle), *stream = stream_of(on);
    if (!event || !stream || flags) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capturing) return violated("a capture waits for an event");
    if (!event->last) return violated("a wait for an event that was never recorded");
    return push(stream, (Node){.name = "wait", .after = {NULL, event->last}});
}

CUresult CUDAAPI cuEventSynchronize(CUevent handle) {
    IN_CONTEXT;
    Object *event = find(EVENT, handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    CHECK(unsafe());
    return event->last ? await(event->last) : violated("a wait for an event that was never recorded");
}

CUresult CUDAAPI cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
    IN_CONTEXT;
    Object *start = find(EVENT, from), *end = find(EVENT, to);
    if (!start || !end || (start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    if (!start->last || !end->last) return CUDA_ERROR_INVALID_HANDLE;
    if (!start->last->done || !end->last->done) return CUDA_ERROR_NOT_READY;
    return *ms = (float)(end->last->ended_us - start->last->ended_us) / 1000, CUDA_SUCCESS;
}

CUresult CUDAAPI cuEventDestroy_v2(CUevent handle) {
    IN_CONTEXT;
    Object *event = find(EVENT, handle);
    return event ? event->alive = false, CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* --- graphs -------------------------------------------------------------------------------------------------------- */

CUresult CUDAAPI cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    IN_CONTEXT;
    Object *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capturing) return CUDA_ERROR_ILLEGAL_STATE;
    if (stream->kind == DEFAULT_STREAM && stream->flags == 1) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    stream->capturing = true, stream->broken = false, stream->n_nodes = 0;
    stream->mode = mode, stream->capturer = pthread_self();
    return CUDA_SUCCESS;
}

static Object *graph_of(Kind kind, const Object *from) {
    Object *graph = make(kind);
    graph->n_nodes = from->n_nodes;
    memcpy(graph->nodes, from->nodes, sizeof graph->nodes);
    return graph;
}

CUresult CUDAAPI cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    LOCKED;
    Object *stream = stream_of(handle);
    *graph = NULL;
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!stream->capturing) return CUDA_ERROR_ILLEGAL_STATE;
    if (!pthread_equal(stream->capturer, pthread_self())) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    stream->capturing = false; /* whether it was good or not */
    CHECK(refused(__func__));
    if (stream->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    return *graph = (CUgraph)graph_of(GRAPH, stream), CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph handle, unsigned long long flags) {
    IN_CONTEXT;
    Object *graph = find(GRAPH, handle);
    if (!graph || flags) return CUDA_ERROR_INVALID_VALUE;
    return *exec = (CUgraphExec)graph_of(EXEC, graph), CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphLaunch(CUgraphExec handle, CUstream on) {
    IN_CONTEXT;
    Object *exec = find(EXEC, handle), *stream = stream_of(on);
    if (!exec || !stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capturing) return violated("a graph is launched in a capture");
    for (int i = 0; i < exec->n_nodes; i++) {
        Node node = *exec->nodes[i];
        for (int k = 0; k < node.n_uses; k++)
            if (!find(ENGINE, (void *)node.uses[k].start) && !block_of(node.uses[k].start))
                return violated("a graph with freed memory, or of a closed engine");
        if (node.n_uses == MAX_USES) return violated("a node uses too much");
        node.uses[node.n_uses++] = (Use){(uintptr_t)exec, (uintptr_t)exec + 1, false};
        CHECK(push(stream, node));
    }
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec handle) {
    IN_CONTEXT;
    Object *exec = find(EXEC, handle);
    if (!exec) return CUDA_ERROR_INVALID_VALUE;
    CHECK(expect_idle((uintptr_t)exec, 1, "a graph", "destroyed"));
    return exec->alive = false, CUDA_SUCCESS;
}

CUresult CUDAAPI cuGraphDestroy(CUgraph handle) {
    IN_CONTEXT;
    Object *graph = find(GRAPH, handle);
    return graph ? graph->alive = false, CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* --- for the tests ------------------------------------------------------------------------------------------------- */

/* Begin anew, on a machine with FAKE_GPUS GPUs, which is one where that is not set, and a driver for CUDA 12.6. */
void fake_reset(void) {
    LOCKED;
    for (int i = 0; i < n_objects; i++) {
        free(objects[i]->bytes);
        if (objects[i] != primary) free(objects[i]); /* not what was recorded: graphs share it */
    }
    for (int i = 0; i < n_nodes; i++) free(nodes[i]);
    n_objects = n_nodes = n_failures = retained = 0;
    *violation = 0, epoch++;
    objects = realloc(objects, sizeof *objects);
    objects[n_objects++] = primary; /* it keeps its handle, as the real one does */
    *primary = (Object){.kind = CONTEXT};
    const char *devices = getenv("FAKE_GPUS");
    machine.devices = devices ? atoi(devices) : 1, machine.version = 12060, machine.integrated = machine.initialised = 0;
}

void fake_set(const char *name, int value) {
    LOCKED;
    *(!strcmp(name, "devices") ? &machine.devices : !strcmp(name, "version") ? &machine.version : &machine.integrated) =
        value;
}

/* Let the n-th call of a function from now on fail, once; "allocation" is any of host or device memory. */
void fake_fail(const char *name, int countdown, CUresult code) {
    LOCKED;
    if (n_failures == MAX_FAILURES) memmove(failures, failures + 1, sizeof *failures * (size_t)--n_failures);
    Failure *failure = &failures[n_failures++];
    snprintf(failure->name, sizeof failure->name, "%s", name);
    failure->countdown = countdown, failure->code = code;
}

/* What a program did wrong first, or "". */
const char *fake_violation(void) { return violation; }

/* The handles or addresses that are alive of a kind, in the order in which they were made. */
int fake_list(const char *kind, uintptr_t *handles, int room) {
    LOCKED;
    int n = 0;
    for (int i = 0; i < n_objects; i++)
        if (objects[i]->alive && !strcmp(kind_names[objects[i]->kind], kind)) {
            if (n < room) handles[n] = objects[i]->bytes ? (uintptr_t)objects[i]->bytes : (uintptr_t)objects[i];
            n++;
        }
    return n;
}

/* Whether a stream records. */
int fake_records(CUstream handle) {
    LOCKED;
    Object *stream = stream_of(handle);
    return stream && stream->capturing;
}

int fake_capturing(void) {
    LOCKED;
    int n = 0;
    for (int i = 0; i < n_objects; i++) n += objects[i]->capturing;
    return n;
}

/* The context of the calling thread, or NULL. */
Object *fake_current(void) {
    LOCKED;
    return current();
}

/* How many bytes the device has from an address on. */
size_t fake_room(uintptr_t address) {
    LOCKED;
    Object *block = block_of(address);
    return block && (block->kind == DEVICE || block->mapped) ? (uintptr_t)block->bytes + block->size - address : 0;
}

/* A stream of somebody else that waits for the default one, as those of other libraries do; the product makes none. */
CUstream fake_blocking_stream(void) {
    LOCKED;
    return (CUstream)make(STREAM);
}

/* The host reads or writes its own memory now. */
CUresult fake_touch(uintptr_t address, size_t size) {
    LOCKED;
    Object *block = block_of(address);
    if (!block || block->kind != HOST || address + size > (uintptr_t)block->bytes + block->size)
        return violated("%#lx is not page-locked memory of %zu bytes", (unsigned long)address, size);
    return expect_idle(address, size, "memory", "touched by the host");
}

int fake_nodes(void) { return n_nodes; }

const char *fake_node(int index, int *done) {
    LOCKED;
    return *done = nodes[index]->done, nodes[index]->name;
}

int fake_is_behind(int node, int other) {
    LOCKED;
    return is_behind(nodes[node], nodes[other]);
}

/* An engine's context, which may run on one stream at a time. */
Object *fake_engine(void) {
    LOCKED;
    if (!current()) return violated("an engine without a CUDA context"), NULL;
    return make(ENGINE);
}

CUresult fake_close_engine(Object *engine) {
    LOCKED;
    if (!find(ENGINE, engine)) return violated("an engine is closed twice, or in another CUDA context");
    CHECK(unsafe());
    CHECK(expect_idle((uintptr_t)engine, 1, "an engine", "closed"));
    return engine->alive = false, CUDA_SUCCESS;
}

/* Queue a run of an engine, which uses memory of the device; the first run of each allocates. */
CUresult fake_queue(Object *engine, CUstream handle, void (*work)(void *), void *data, int n, const uintptr_t *starts,
                    const size_t *sizes, const int *writes) {
    LOCKED;
    Object *stream = stream_of(handle);
    if (!find(ENGINE, engine)) return violated("an engine runs after it was closed, or in another CUDA context");
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    now_us += CALL_US;
    if (!engine->runs++) CHECK(unsafe());
    if (n > MAX_USES - 2) return violated("an engine with too many tensors");
    Node node = {.name = "engine", .work = work, .data = data, .n_uses = n + 1};
    for (int i = 0; i < n; i++) {
        if (!holds(starts[i], sizes[i], true)) return violated("%#lx is not device memory", (unsigned long)starts[i]);
        node.uses[i] = (Use){starts[i], starts[i] + sizes[i], writes[i]};
    }
    node.uses[n] = (Use){(uintptr_t)engine, (uintptr_t)engine + 1, true};
    if (stream->capturing && user_in_flight((uintptr_t)engine, (uintptr_t)engine + 1))
        return violated("a run is captured while another of its engine is in flight");
    return queue(stream, node);
}

__attribute__((constructor)) static void start(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mutex, &attributes);
    fake_reset();
}
