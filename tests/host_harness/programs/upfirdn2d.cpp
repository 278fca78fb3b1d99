// csrc/cuda/upfirdn2d.cu, for the host harness.
#include "upfirdn2d.h"

#include "program.h"

namespace {

using fastgan_host::Request;

// "up", "down", "pad" of x and y, and the sizes of what comes out, with the name of the filter
// before them.
fastgan::Filter filter_of(const Request& request, const std::string& name, std::int64_t rows,
                          std::int64_t places) {
    const auto integer = [&](const char* what) { return request.integer(name + "_" + what); };
    const bool has_filter = request.has_tensor(name);
    std::int64_t taps_x = 1, taps_y = 1;
    fastgan::Filter filter{};
    if (has_filter) {
        const auto f = request.tensor(name);
        taps_x = f.sizes.back();
        taps_y = f.sizes.front();
        filter.f = f.data;
        filter.is_double = f.type == fastgan::FloatType::float64;
    }
    filter.separable = !has_filter || request.tensor(name).sizes.size() == 1;
    filter.x = {places, integer("places"), integer("up_x"), integer("down_x"), integer("pad_x"),
                taps_x};
    filter.y = {rows, integer("rows"), integer("up_y"), integer("down_y"), integer("pad_y"), taps_y};
    filter.flip = request.integer("flip") != 0;
    filter.gain = request.number(name + "_gain");
    return filter;
}

// x and y lie as `channels_last` says; their sizes are (N, C, H, W).
fastgan::FirMaps maps_of(const Request& request) {
    const auto x = request.tensor("x");
    return {x.type,  x.sizes[0], x.sizes[1], request.integer("channels_last") != 0,
            x.data, request.tensor("y").data};
}

}  // namespace

FASTGAN_HOST_ENTRY(upfirdn2d) {
    const auto x = request.tensor("x");
    fastgan::cuda::upfirdn2d(maps_of(request), filter_of(request, "f", x.sizes[2], x.sizes[3]),
                             request.stream());
}

FASTGAN_HOST_ENTRY(filtered_lrelu) {
    const auto x = request.tensor("x");
    const fastgan::Filter first = filter_of(request, "fu", x.sizes[2], x.sizes[3]);
    const fastgan::Filter second = filter_of(request, "fd", first.y.out, first.x.out);
    const auto signs = static_cast<fastgan::Signs>(request.integer("signs"));
    const bool has_bits = signs != fastgan::Signs::none;
    const fastgan::FirBetween between{
        request.has_tensor("b") ? request.tensor("b").data : nullptr,
        {request.number("gain"), request.number("slope"), request.number("clamp")},
        signs,
        has_bits ? static_cast<std::uint8_t*>(request.tensor("bits").data) : nullptr};
    fastgan::cuda::filtered_lrelu(maps_of(request), first, between, second, request.stream());
}
