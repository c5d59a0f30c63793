// A stub of the CUDA driver, to measure the work of the CPU. A launch does nothing, device memory is CPU memory, and
// all other calls succeed. It defines the functions of libcuda.so.1 that Numba and cuda.core call. Functions whose
// names begin with cupy_ replace functions of cupy_backends.cuda.api that must return a value (see launch.py).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *Handle;

static long launches;
static char context;

static Handle handle(void) { return malloc(1); }  // a unique value
static int allocate(Handle *memory, size_t bytes) { return posix_memalign(memory, 512, bytes); }
static int copy(Handle to, const void *from, size_t bytes) { return memcpy(to, from, bytes), 0; }
static int nothing(void) { return 0; }

long stand_in_launches(void) { return launches; }

// One device, with the properties of an H100.
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, 0; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "stand-in"), 0; }
int cuDeviceGetUuid_v2(char *uuid, int device) { return memset(uuid, 7, 16), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)1 << 36, 0; }
static int attribute(int which) {
  switch (which) {
    case 1: case 2: case 3: return 1024;  // threads per block, and along its axes
    case 5: return 0x7fffffff;            // blocks along the axes of a grid
    case 6: case 7: return 65535;
    case 8: return 49152;                 // bytes of shared memory per block
    case 10: return 32;                   // threads per warp
    case 16: return 132;                  // multiprocessors
    case 39: return 2048;                 // threads per multiprocessor
    case 41: return 1;                    // unified addresses
    case 75: return 9;                    // compute capability 9.0
    default: return 0;
  }
}
int cuDeviceGetAttribute(int *value, int which, int device) { return *value = attribute(which), 0; }

// One context, which is always current.
int cuDevicePrimaryCtxRetain(Handle *current, int device) { return *current = &context, 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
int cuCtxGetCurrent(Handle *current) { return *current = &context, 0; }
int cuCtxPopCurrent_v2(Handle *current) { return *current = &context, 0; }
int cuCtxGetDevice(int *device) { return *device = 0, 0; }
int cuStreamGetCtx(Handle stream, Handle *current) { return *current = &context, 0; }
int cuStreamCreate(Handle *stream, unsigned flags) { return *stream = handle(), 0; }
int cuStreamIsCapturing(Handle stream, int *status) { return *status = 0, 0; }
int cuEventCreate(Handle *event, unsigned flags) { return *event = handle(), 0; }

int cuModuleLoadDataEx(Handle *module) { return *module = handle(), 0; }
int cuModuleGetFunction(Handle *function) { return *function = handle(), 0; }
int cuLibraryLoadData(Handle *library) { return *library = handle(), 0; }
int cuLibraryGetKernel(Handle *kernel) { return *kernel = handle(), 0; }
int cuLibraryGetModule(Handle *module) { return *module = handle(), 0; }
int cuKernelGetFunction(Handle *function) { return *function = handle(), 0; }
int cuFuncGetAttribute(int *value, int which, Handle function) { return *value = which ? 32 : 1024, 0; }
int cuKernelGetAttribute(int *value, int which, Handle kernel) { return *value = which ? 32 : 1024, 0; }

int cuMemAlloc_v2(Handle *memory, size_t bytes) { return allocate(memory, bytes); }
int cuMemAllocAsync(Handle *memory, size_t bytes, Handle stream) { return allocate(memory, bytes); }
int cuMemHostAlloc(Handle *memory, size_t bytes, unsigned flags) { return allocate(memory, bytes); }
int cuMemFree_v2(Handle memory) { return free(memory), 0; }
int cuMemFreeAsync(Handle memory, Handle stream) { return free(memory), 0; }
int cuMemFreeHost(Handle memory) { return free(memory), 0; }
int cuMemGetInfo_v2(size_t *unused, size_t *all) { return *unused = *all = (size_t)1 << 36, 0; }
int cuMemcpyHtoD_v2(Handle to, const void *from, size_t bytes) { return copy(to, from, bytes); }
int cuMemcpyDtoH_v2(Handle to, const void *from, size_t bytes) { return copy(to, from, bytes); }
int cuMemcpyHtoDAsync_v2(Handle to, const void *from, size_t bytes, Handle stream) { return copy(to, from, bytes); }
int cuMemcpyDtoHAsync_v2(Handle to, const void *from, size_t bytes, Handle stream) { return copy(to, from, bytes); }

int cuLaunchKernel(void) { return ++launches, 0; }
int cuLaunchKernelEx(void) { return ++launches, 0; }

// If a function has two versions, current callers use the second.
int cuGetProcAddress_v2(const char *name, Handle *function, int version, uint64_t flags, int *status) {
  static Handle self;
  Dl_info here;
  char second[128];
  if (!self) {
    dladdr(&launches, &here);
    self = dlopen(here.dli_fname, RTLD_NOW);
  }
  snprintf(second, sizeof second, "%s_v2", name);
  *function = dlsym(self, second);
  if (!*function) *function = dlsym(self, name);
  if (!*function) *function = nothing;
  if (status) *status = 0;
  return 0;
}
int cuGetProcAddress(const char *name, Handle *function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

// Functions for CuPy return their result directly.
extern void Py_IncRef(Handle);
extern char _Py_NoneStruct;
Handle cupy_none(void) { return Py_IncRef(&_Py_NoneStruct), &_Py_NoneStruct; }
int cupy_zero(void) { return 0; }
intptr_t cupy_handle(void) { return (intptr_t)handle(); }
int cupy_getDeviceCount(void) { return 1; }
int cupy_runtimeGetVersion(void) { return 13000; }
int cupy_driverGetVersion(void) { return 13000; }
int cupy_deviceGetAttribute(int which, int device) { return attribute(which); }
int cupy_funcGetAttribute(int which, intptr_t function) { return which ? 32 : 1024; }
Handle cupy_malloc(size_t bytes) {
  Handle memory = NULL;
  allocate(&memory, bytes);
  return memory;
}
Handle cupy_hostAlloc(size_t bytes) { return cupy_malloc(bytes); }
Handle cupy_free(Handle memory) { return free(memory), cupy_none(); }
Handle cupy_memcpyAsync(Handle to, const void *from, size_t bytes) { return copy(to, from, bytes), cupy_none(); }
Handle cupy_launchKernel(void) { return ++launches, cupy_none(); }
