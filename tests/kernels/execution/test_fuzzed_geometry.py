"""Random geometries, sizes, batches and channels, by hypothesis."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from test_convolutions import Case, check_forward, check_gradients, draw

from fastgan.kernels import ConvGeometry
from fastgan.kernels.fusion import Statistics

# Each is compiled on a GPU, or takes a third of a second in the interpreter.
EXAMPLES = 15


@st.composite
def convolutions(draw_from: st.DrawFn) -> Case:
    transposed = draw_from(st.booleans())
    size, kernel, stride, dilation = (
        draw_from(st.tuples(st.integers(1, most), st.integers(1, most))) for most in (6, 4, 3, 3)
    )
    padding, output_padding = [], []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        reach = d * (k - 1) + 1
        extra = draw_from(st.integers(0, max(s, d) - 1)) if transposed else 0
        if transposed:
            most = min(3, ((n - 1) * s + reach + extra - 1) // 2)
            padding.append(draw_from(st.integers(0, most)))
        else:
            least = max(0, (reach - n + 1) // 2)
            padding.append(draw_from(st.integers(least, least + 2)))
        output_padding.append(extra)
    geometry = ConvGeometry(
        kernel, stride, tuple(padding), dilation, tuple(output_padding), transposed
    )
    channels = st.sampled_from([1, 2, 3, 5, 16, 17, 33])
    return Case(
        geometry,
        draw_from(st.integers(1, 3)),
        (draw_from(channels), draw_from(channels)),
        size,
    )


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    # Without shrinking, which would take as many minutes as it tries hundreds of examples.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(conv=Case(ConvGeometry((3, 2), (3, 2), (3, 3), (3, 2)), 3, (33, 3), (1, 1)), seed=0)
@given(conv=convolutions(), seed=st.integers(0, 2**16))
def test_any_geometry(conv, seed, dtype, device):
    input = draw(conv.input_shape, dtype, device, seed)
    weight = draw(conv.weight_shape, dtype, device, seed + 1)
    check_forward(conv, input, weight, None, Statistics())
    check_gradients(conv, dtype, device, seed)
