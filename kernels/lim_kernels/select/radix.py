"""The k-th of many values without sorting them: a radix search, one digit of eight bits a pass."""

import triton
import triton.language as tl

_RADIX_BITS = tl.constexpr(8)
_RADIX = tl.constexpr(256)
_SIGN = tl.constexpr(0x80000000)


@triton.jit
def load_digits(source, position, inside, limit, RANKS: tl.constexpr):
    """uint32 whose largest come first: scores, or ranks below ``limit`` counted down."""
    value = tl.load(source + position, mask=inside, other=0)
    if RANKS:
        return (limit - 1 - value).to(tl.uint32), inside & (value < limit)
    return value.to(tl.uint32, bitcast=True) ^ _SIGN, inside


@triton.jit
def kth_largest(source, begin, end, k, limit, RANKS: tl.constexpr, PASSES: tl.constexpr, BLOCK: tl.constexpr):
    """The ``k``-th largest digit string in ``source[begin:end]`` and how many equal ones belong to the first ``k``.

    A radix search from the most significant of ``PASSES`` digits down.
    """
    prefix = tl.zeros((), tl.uint32)
    need = k
    bins = tl.arange(0, _RADIX)
    for step in tl.static_range(PASSES):
        shift = (PASSES - 1 - step) * _RADIX_BITS
        counts = tl.zeros([_RADIX], tl.int32)
        for tile in range(begin, end, BLOCK):
            position = tile + tl.arange(0, BLOCK)
            digits, valid = load_digits(source, position, position < end, limit, RANKS)
            if step > 0:
                valid = valid & ((digits >> (shift + _RADIX_BITS)) == (prefix >> (shift + _RADIX_BITS)))
            counts += tl.histogram(((digits >> shift) & (_RADIX - 1)).to(tl.int32), _RADIX, mask=valid)
        at_least = tl.cumsum(counts, 0, reverse=True)
        digit = tl.max(tl.where(at_least >= need, bins, 0), 0)
        need -= tl.sum(tl.where(bins > digit, counts, 0), 0)
        prefix = prefix | (digit.to(tl.uint32) << shift)
    return prefix, need


@triton.jit
def kth_smallest_rank(source, begin, end, k, limit, PASSES: tl.constexpr, BLOCK: tl.constexpr):
    """The ``k``-th smallest rank in ``source[begin:end]``, of those below ``limit``."""
    digits, _ = kth_largest(source, begin, end, k, limit, True, PASSES, BLOCK)
    return limit - 1 - digits.to(tl.int32)
