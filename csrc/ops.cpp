// The ops of torch.ops.fastgan: argument checks, and the kernel for each device.
//
// Only uses LibTorch's stable ABI: the headers torch/csrc/stable and torch/headeronly, and nothing
// newer than TORCH_TARGET_VERSION. So one binary works with torch 2.10 and all later releases, CPU
// and CUDA builds alike. Schemas are declared in Python, in fastgan/ops, as is what the stable ABI
// lacks: fake kernels, autograd, version counters.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/instruction_sets.h"
#include "math/clip.h"
#include "multi_tensor.h"
#include "op_arguments.h"
#include "optimizers.h"

namespace fastgan {

namespace {

using torch::stable::Tensor;

double largest(FloatType type) {
    switch (type) {
        case FloatType::float64:
            return std::numeric_limits<double>::max();
        case FloatType::float32:
            return std::numeric_limits<float>::max();
        case FloatType::float16:
            return 65504.0;
        case FloatType::bfloat16:
            break;
    }
    return 0x1.fep127;
}

// Checked, and rounded to the tensor's dtype, like torch.clamp_'s bounds.
ClipBounds clip_bounds(const char* op, const Tensor& tensor, FloatType type, double min,
                       double max) {
    if (std::isnan(min) || std::isnan(max)) {
        fail(op, ": min and max must be numbers, got min = ", min, ", max = ", max);
    }
    if (min > max) {
        fail(op, ": min must not exceed max, got min = ", min, ", max = ", max);
    }
    const std::pair<const char*, double> bounds[] = {{"min", min}, {"max", max}};
    for (const auto& [name, bound] : bounds) {
        if (std::isfinite(bound) && std::abs(bound) > largest(type)) {
            fail(op, ": ", name, " = ", bound, " is beyond what ", dtype_name(dtype_code(tensor)),
                 " holds; for no bound pass an infinity");
        }
    }
    return ClipBounds{round_to(type, min), round_to(type, max)};
}

// --- Lists of tensors ----------------------------------------------------------------------------

using TensorList = std::vector<Tensor>;

// An argument with one tensor for each parameter.
struct ListArgument {
    const char* name;
    const TensorList* tensors;
    int place;
    bool written;
};

// A tensor with the parameter's device and shape.
void check_matches(const char* op, const Tensor& param, const ListArgument& list, std::size_t i) {
    const Tensor& tensor = (*list.tensors)[i];
    if (!same_sizes(tensor, param)) {
        fail(op, ": ", list.name, "[", i, "] has shape ", shape_text(tensor),
             ", its parameter has shape ", shape_text(param));
    }
    if (tensor.device() != param.device()) {
        fail(op, ": ", list.name, "[", i, "] is not on its parameter's device");
    }
}

// `lists`: the parameters' first. Empty ones are unused; the others are as long as the first.
MultiTensor multi_tensor(const char* op, const std::vector<ListArgument>& lists) {
    const TensorList& params = *lists.front().tensors;
    for (const ListArgument& list : lists) {
        if (!list.tensors->empty() && list.tensors->size() != params.size()) {
            fail(op, ": ", list.name, " has ", list.tensors->size(), " tensors for ", params.size(),
                 " in ", lists.front().name);
        }
    }
    MultiTensor result;
    if (params.empty()) {
        return result;
    }
    result.type = float_type(op, lists.front().name, params.front());
    const std::int32_t code = dtype_code(params.front());
    result.items.resize(params.size());
    for (std::size_t i = 0; i < params.size(); ++i) {
        const Tensor& param = params[i];
        MultiTensorItem& item = result.items[i];
        const std::int64_t* strides[kPlaces] = {};
        bool all_contiguous = true;
        for (const ListArgument& list : lists) {
            if (list.tensors->empty()) {
                continue;
            }
            const Tensor& tensor = (*list.tensors)[i];
            if (list.place != kShadow && dtype_code(tensor) != code) {
                fail(op, ": ", list.name, "[", i, "] has dtype ", dtype_name(dtype_code(tensor)),
                     "; expected ", dtype_name(code), ", as ", lists.front().name, "[0]");
            }
            if (list.place != kParam) {
                check_matches(op, param, list, i);
            } else if (param.device() != params.front().device()) {
                fail(op, ": ", list.name, "[", i, "] is on another device than ", list.name, "[0]");
            }
            if (list.written) {
                refuse_expanded(op, list.name + ("[" + std::to_string(i) + "]"), tensor);
            }
            strides[list.place] = strides_of(tensor).data();
            all_contiguous = all_contiguous && tensor.is_contiguous();
            item.data[list.place] = list.written ? tensor.mutable_data_ptr()
                                                 : const_cast<void*>(tensor.const_data_ptr());
        }
        item.numel = param.numel();
        // As most are; JointLayout::is_dense covers other layouts.
        if (item.numel > 0 && !all_contiguous) {
            const JointLayout layout = make_joint_layout(param.sizes().data(), strides,
                                                         static_cast<int>(param.sizes().size()));
            if (!layout.is_dense()) {
                item.layout = static_cast<int>(result.layouts.size());
                result.layouts.push_back(layout);
            }
        }
    }
    return result;
}

// Whether two tensors share an element, exactly; slow.
bool share_memory(const MultiTensor& tensors, int place, const MultiTensorItem& a,
                  const MultiTensorItem& b) {
    const std::int64_t bytes = bytes_of(tensors.type);
    std::vector<const char*> elements;
    elements.reserve(static_cast<std::size_t>(a.numel + b.numel));
    for (const MultiTensorItem* item : {&a, &b}) {
        const auto* const begin = static_cast<const char*>(item->data[place]);
        for (std::int64_t i = 0; i < item->numel; ++i) {
            const std::int64_t offset =
                item->layout == MultiTensorItem::kDense
                    ? i
                    : tensors.layouts[static_cast<std::size_t>(item->layout)].offset(place, i);
            elements.push_back(begin + offset * bytes);
        }
    }
    std::sort(elements.begin(), elements.end(), std::less<const char*>());
    return std::adjacent_find(elements.begin(), elements.end(),
                              [&](const char* first, const char* second) {
                                  return second - first < bytes;
                              }) != elements.end();
}

enum class Overlap { by_extent, by_element };

// by_extent: whether the tensors at `place` of two parameters may share memory, because their
// address ranges overlap. by_element: whether they do.
bool any_overlap(const MultiTensor& tensors, int place, Overlap kind) {
    const std::int64_t bytes = bytes_of(tensors.type);
    struct Extent {
        const char* begin;
        const char* end;
        const MultiTensorItem* item;
    };
    std::vector<Extent> extents;
    extents.reserve(tensors.items.size());
    for (const MultiTensorItem& item : tensors.items) {
        if (item.numel == 0) {
            continue;
        }
        std::int64_t last = item.numel - 1;
        if (item.layout != MultiTensorItem::kDense) {
            last = tensors.layouts[static_cast<std::size_t>(item.layout)].offset(place, last);
        }
        const auto* const begin = static_cast<const char*>(item.data[place]);
        extents.push_back({begin, begin + (last + 1) * bytes, &item});
    }
    const auto before = std::less<const char*>();
    std::sort(extents.begin(), extents.end(),
              [&](const Extent& a, const Extent& b) { return before(a.begin, b.begin); });
    for (std::size_t i = 0; i < extents.size(); ++i) {
        for (std::size_t j = i + 1; j < extents.size() && before(extents[j].begin, extents[i].end);
             ++j) {
            if (kind == Overlap::by_extent ||
                share_memory(tensors, place, *extents[i].item, *extents[j].item)) {
                return true;
            }
        }
    }
    return false;
}

MultiTensor only(const MultiTensor& tensors, std::size_t i) {
    MultiTensor one;
    one.type = tensors.type;
    one.items.push_back(tensors.items[i]);
    if (one.items[0].layout != MultiTensorItem::kDense) {
        one.layouts.push_back(tensors.layouts[static_cast<std::size_t>(one.items[0].layout)]);
        one.items[0].layout = 0;
    }
    return one;
}

FloatType shadow_type(const char* op, const TensorList& shadows) {
    if (shadows.empty()) {
        return FloatType::bfloat16;
    }
    const FloatType type = float_type(op, "shadows", shadows.front());
    for (const Tensor& shadow : shadows) {
        if (dtype_code(shadow) != dtype_code(shadows.front()) ||
            (type != FloatType::float16 && type != FloatType::bfloat16)) {
            fail(op, ": shadows must all be float16 or all bfloat16, one is ",
                 dtype_name(dtype_code(shadow)));
        }
    }
    return type;
}

ScalarReference scalar_reference(const char* op, const char* argument, const Tensor& tensor,
                                 const Tensor& param, bool written) {
    ScalarReference reference;
    const std::int32_t code = dtype_code(tensor);
    reference.is_float64 = code == aoti_torch_dtype_float64();
    if (tensor.numel() != 1 || (!reference.is_float64 && code != aoti_torch_dtype_float32())) {
        fail(op, ": ", argument, " has shape ", shape_text(tensor), " and dtype ", dtype_name(code),
             "; expected one element, float32 or float64");
    }
    if (tensor.device() != param.device()) {
        fail(op, ": ", argument, " is not on the parameters' device");
    }
    reference.data =
        written ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
    return reference;
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// --- Optimisers ----------------------------------------------------------------------------------

// Arguments that all optimisers' ops have.
struct StepArguments {
    const char* op;
    const TensorList& params;
    const TensorList& grads;
    const TensorList& state_steps;
    const TensorList& shadows;
    double lr;
    const std::optional<Tensor>& lr_tensor;
    bool maximize;
    double clip_min;
    double clip_max;
    bool clip_first;
    const std::optional<Tensor>& grad_scale;
    const std::optional<Tensor>& found_inf;
};

template <typename Device, typename Optimizer>
void run_step(const StepArguments& a, const std::vector<const TensorList*>& states,
              const Optimizer& optimizer) {
    std::vector<ListArgument> lists = {
        {"params", &a.params, kParam, true},
        {"grads", &a.grads, kGrad, a.grad_scale.has_value()},
    };
    int place = kFirstState;
    for (std::size_t i = 0; i < states.size(); ++i) {
        if (!optimizer.uses_state(static_cast<int>(i))) {
            continue;
        }
        const char* const name = Optimizer::kStates[i];
        if (states[i]->size() != a.params.size()) {
            fail(a.op, ": ", name, " has ", states[i]->size(), " tensors for ", a.params.size(),
                 " in params");
        }
        lists.push_back({name, states[i], place++, true});
    }
    lists.push_back({"shadows", &a.shadows, kShadow, true});
    if (a.grads.size() != a.params.size() || a.state_steps.size() != a.params.size()) {
        fail(a.op, ": params, grads and state_steps must be as long as each other, got ",
             a.params.size(), ", ", a.grads.size(), " and ", a.state_steps.size());
    }
    MultiTensor tensors = multi_tensor(a.op, lists);
    if (tensors.items.empty()) {
        return;
    }
    const Tensor& first = a.params.front();
    for (std::size_t i = 0; i < a.params.size(); ++i) {
        tensors.items[i].step =
            scalar_reference(a.op, "a tensor of state_steps", a.state_steps[i], first, true);
    }
    const ClipBounds no_clip{-kInfinity, kInfinity};
    const ClipBounds clip = clip_bounds(a.op, first, tensors.type, a.clip_min, a.clip_max);
    StepSettings settings;
    settings.lr = a.lr;
    settings.weight_decay = optimizer.decay();
    settings.maximize = a.maximize;
    settings.clip_before = a.clip_first ? clip : no_clip;
    settings.clip_after = a.clip_first ? no_clip : clip;
    settings.shadow_type = shadow_type(a.op, a.shadows);
    if (a.lr_tensor) {
        settings.lr_tensor = scalar_reference(a.op, "lr_tensor", *a.lr_tensor, first, false);
    }
    if (a.grad_scale) {
        settings.grad_scale = scalar_reference(a.op, "grad_scale", *a.grad_scale, first, false);
    }
    if (a.found_inf) {
        settings.found_inf = scalar_reference(a.op, "found_inf", *a.found_inf, first, false);
    }
    if (a.grad_scale && any_overlap(tensors, kGrad, Overlap::by_element)) {
        fail(a.op,
             ": gradients that share memory would be divided by grad_scale twice; list each "
             "parameter once, with a gradient of its own");
    }
    on_device_of<Device>(first, [&](Device device) {
        // Parameters that share memory, such as tied ones, can't be written in parallel.
        if (!any_overlap(tensors, kParam, Overlap::by_extent)) {
            optimizer_step(device, tensors, optimizer, settings);
            return;
        }
        // One after the other, as in torch.optim, with the clip before or after all of them.
        settings.clip_before = settings.clip_after = no_clip;
        const auto clip_all = [&](ClipBounds bounds) {
            kernels::clip_tensors(device, tensors, bounds, settings.shadow_type,
                                  settings.found_inf);
        };
        if (a.clip_first) {
            clip_all(clip);
        }
        for (std::size_t i = 0; i < tensors.items.size(); ++i) {
            optimizer_step(device, only(tensors, i), optimizer, settings);
        }
        // Also without a clip: a shadow was written before a later step on the same memory.
        clip_all(a.clip_first ? no_clip : clip);
    });
}

template <std::size_t>
using StateList = TensorList;

template <typename Optimizer>
using StateIndices = std::make_index_sequence<std::size(Optimizer::kStates)>;

// An optimiser's op, with the arguments that its row names.
template <typename Device, typename Optimizer, typename Indices = StateIndices<Optimizer>,
          typename Types = typename Optimizer::Types>
struct StepOp;

template <typename Device, typename Optimizer, std::size_t... kIndices, typename... Settings>
struct StepOp<Device, Optimizer, std::index_sequence<kIndices...>, TypeList<Settings...>> {
    static void call(TensorList params, TensorList grads, StateList<kIndices>... states,
                     TensorList state_steps, TensorList shadows, double lr,
                     std::optional<Tensor> lr_tensor, Settings... settings, bool maximize,
                     double clip_min, double clip_max, bool clip_first,
                     std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
        run_step<Device>({Optimizer::kOp, params, grads, state_steps, shadows, lr, lr_tensor,
                          maximize, clip_min, clip_max, clip_first, grad_scale, found_inf},
                         {&states...}, Optimizer{settings...});
    }
};

template <typename Device>
void clip_tensors(TensorList tensors, TensorList shadows, double min, double max,
                  std::optional<Tensor> found_inf) {
    constexpr const char* op = "fastgan::clip_tensors_";
    const MultiTensor items = multi_tensor(
        op, {{"tensors", &tensors, kParam, true}, {"shadows", &shadows, kShadow, true}});
    if (items.items.empty()) {
        return;
    }
    const ClipBounds bounds = clip_bounds(op, tensors.front(), items.type, min, max);
    ScalarReference skip;
    if (found_inf) {
        skip = scalar_reference(op, "found_inf", *found_inf, tensors.front(), false);
    }
    // Overlapping tensors are fine: clipping is idempotent.
    on_device_of<Device>(tensors.front(), [&](Device device) {
        kernels::clip_tensors(device, items, bounds, shadow_type(op, shadows), skip);
    });
}

FASTGAN_IMPLEMENT(Device, library) {
    library.impl("clip_tensors_", TORCH_BOX(&clip_tensors<Device>));
#define FASTGAN_IMPLEMENT_STEP(name, Optimizer) \
    library.impl(#name "_step_", TORCH_BOX((&StepOp<Device, Optimizer>::call)));
    FASTGAN_OPTIMIZERS(FASTGAN_IMPLEMENT_STEP)
}

}  // namespace

}  // namespace fastgan

// For fastgan.build_info(): the instruction set that the loops in csrc/cpu run with here, or null
// with the reason in *error when the environment variable that lowers it is malformed.
extern "C" __attribute__((visibility("default"))) const char* fastgan_cpu_instruction_set(
    const char** error) {
    try {
        return fastgan::cpu::name(fastgan::cpu::instruction_set());
    } catch (const std::exception& exception) {
        static std::string message;
        message = exception.what();
        *error = message.c_str();
        return nullptr;
    }
}
