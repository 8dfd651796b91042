"""float8_e4m3fn where the GPU has no such type (compute capability below 8.9): its bytes, decoded in the kernel."""

import triton
import triton.language as tl

_SIGN_AND_REST = tl.constexpr(-0x78100000)  # 0x87f00000: the sign, three unused bits of the exponent, then seven bits
_BIAS = tl.constexpr(2.0 ** (127 - 7))
_LARGEST = tl.constexpr(448.0)


@triton.jit
def decode_e4m3(code):
    """The float32 of every byte, exactly: zeros, subnormals and NaN (0x7f, 0xff) too.

    Sign, exponent and mantissa go to where float32 has them; what is left is the difference of the exponents' biases.
    """
    bits = (code.to(tl.int8, bitcast=True).to(tl.int32) << 20) & _SIGN_AND_REST
    value = bits.to(tl.float32, bitcast=True) * _BIAS
    return tl.where(tl.abs(value) > _LARGEST, float("nan"), value)  # the NaNs' bits would mean 480


@triton.jit
def as_dtype(loaded, dtype: tl.constexpr):
    """What was loaded from a cache in ``dtype``; uint8 are the bytes of float8_e4m3fn."""
    if loaded.dtype == tl.uint8:
        return decode_e4m3(loaded).to(dtype)
    return loaded.to(dtype)
