"""The activations of `reference/activations.py` in Triton, on fp32 blocks."""

from autopeft.kernels.language import constexpr, tl, triton


@triton.jit
def activated(s, ACTIVATION: constexpr):
    """The activation of every element."""
    if ACTIVATION == "relu":
        s = tl.maximum(s, 0.0)
    elif ACTIVATION == "gelu":
        s = 0.5 * s * (1.0 + tl.erf(s * 0.7071067811865476))
    elif ACTIVATION == "silu":
        s = s * tl.sigmoid(s)
    elif ACTIVATION == "tanh":
        s = 2.0 * tl.sigmoid(2.0 * s) - 1.0
    return s


@triton.jit
def slope(s, ACTIVATION: constexpr):
    """The derivative of the activation at every element."""
    if ACTIVATION == "relu":
        s = (s > 0.0).to(tl.float32)
    elif ACTIVATION == "gelu":
        s = 0.5 * (1.0 + tl.erf(s * 0.7071067811865476)) + s * tl.exp(-0.5 * s * s) * 0.3989422804014327
    elif ACTIVATION == "silu":
        gate = tl.sigmoid(s)
        s = gate * (1.0 + s * (1.0 - gate))
    elif ACTIVATION == "tanh":
        value = 2.0 * tl.sigmoid(2.0 * s) - 1.0
        s = 1.0 - value * value
    else:
        s = s * 0.0 + 1.0
    return s
