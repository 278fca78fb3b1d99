// Nothing that is put in a stream runs at once. What a launch was given by value is kept, as CUDA
// keeps it; what it was given by address is read when the test runs the stream, after the code that
// launched has returned: memory that did not live long enough is found, as by a CUDA graph's
// replay.
#include "streams.h"

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "blocks.h"
#include "memory.h"
#include "report.h"
#include "symbols.h"

struct FastganHostStream {
    std::vector<std::function<void()>> waiting;
};

namespace fastgan_host {

namespace {

FastganHostStream default_stream;
FastganHostStream the_test_stream;
std::map<const void*, std::size_t> dynamic_shared_limits;
cudaError_t last_error = cudaSuccess;

constexpr std::size_t kDefaultSharedLimit = 48 << 10;
constexpr std::size_t kLargestSharedLimit = 227 << 10;  // compute capability 9.0 and 10.0
constexpr unsigned kLargestBlock = 1024;

FastganHostStream& stream_of(cudaStream_t stream) {
    return stream == nullptr ? default_stream : *stream;
}

cudaError_t set_error(cudaError_t error) {
    if (error != cudaSuccess) {
        last_error = error;
    }
    return error;
}

bool is_possible(dim3 grid, dim3 block) {
    return grid.x >= 1 && grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 0xffffu &&
           grid.z >= 1 && grid.z <= 0xffffu && block.x >= 1 && block.x <= kLargestBlock &&
           block.y >= 1 && block.y <= kLargestBlock && block.z >= 1 && block.z <= 64 &&
           block.x * block.y * block.z <= kLargestBlock;
}

}  // namespace

cudaStream_t test_stream() {
    return &the_test_stream;
}

void run_streams(int times) {
    if (!default_stream.waiting.empty()) {
        fail("wrong stream", "work was put in the default stream, not in the one given");
    }
    for (int i = 0; i < times; ++i) {
        for (const auto& work : the_test_stream.waiting) {
            work();
        }
    }
    forget_streams();
}

void forget_streams() {
    default_stream.waiting.clear();
    the_test_stream.waiting.clear();
}

cudaError_t enqueue(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                    cudaStream_t stream, Invocation* invocation) {
    const std::shared_ptr<Invocation> kept(invocation);
    const auto limit = dynamic_shared_limits.find(kernel);
    if (!is_possible(grid, block) ||
        shared_bytes >
            (limit == dynamic_shared_limits.end() ? kDefaultSharedLimit : limit->second)) {
        return set_error(is_possible(grid, block) ? cudaErrorInvalidValue
                                                  : cudaErrorInvalidConfiguration);
    }
    stream_of(stream).waiting.push_back([=] {
        Region& arguments =
            add_device_memory("the kernel's arguments", kept.get(), kept->size, true);
        arguments.space = Region::Space::arguments;
        running.kernel = kernel_name(kernel);
        run_grid(grid, block, shared_bytes, *kept);
        running.kernel.clear();
        remove_device_memory(arguments);
    });
    return cudaSuccess;
}

cudaError_t set_dynamic_shared_limit(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<std::size_t>(value) > kLargestSharedLimit) {
        return set_error(cudaErrorInvalidValue);
    }
    dynamic_shared_limits[kernel] = static_cast<std::size_t>(value);
    return cudaSuccess;
}

}  // namespace fastgan_host

using namespace fastgan_host;

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorInvalidConfiguration:
            return "cudaErrorInvalidConfiguration";
        case cudaErrorMemoryAllocation:
            return "cudaErrorMemoryAllocation";
        case cudaErrorNoKernelImageForDevice:
            return "cudaErrorNoKernelImageForDevice";
    }
    return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
           : error == cudaErrorInvalidValue       ? "invalid argument"
                                                  : cudaGetErrorName(error);
}

cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError() {
    return last_error;
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            // Few, so that a grid sized by it is small and its threads have to loop.
            *value = 2;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = kLargestSharedLimit;
            return cudaSuccess;
    }
    return set_error(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t size, cudaMemcpyKind,
                            cudaStream_t stream) {
    stream_of(stream).waiting.push_back([=] {
        std::memcpy(target, source, size);
        trace_host_write(target, size);
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* target, int value, std::size_t size, cudaStream_t stream) {
    stream_of(stream).waiting.push_back([=] {
        std::memset(target, value, size);
        trace_host_write(target, size);
    });
    return cudaSuccess;
}
