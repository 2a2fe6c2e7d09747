"""What the kernels are told, as C sees it: the structs of `native/`, field by field.

Letters: R rows, S positions, T longest sequence, G kv heads, E head width, D width, K inputs,
N features.
"""

from ctypes import Structure, c_double, c_int64, c_void_p
from enum import IntEnum, IntFlag


class Kind(IntEnum):
    """How a matrix lies in memory."""

    ROWS_FLOAT = 0
    ROWS_BF16 = 1
    ROWS_INT8 = 2
    TILES = 3
    TILES_INT8 = 4

    @property
    def is_tiles(self) -> bool:
        """Whether the matrix unit reads it."""
        return self >= Kind.TILES


class Do(IntFlag):
    """Parts of a layer that one call runs."""

    ATTEND = 1
    O = 2  # noqa: E741
    GATE_UP = 4
    DOWN = 8


class Weights(Structure):
    """A matrix (N, K), or two that gate each other."""

    _fields_ = [
        ("data", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("features", c_int64),
        ("kind", c_int64),
        ("gated", c_int64),
    ]


class Layer(Structure):
    """A transformer layer."""

    _fields_ = [
        ("attn_norm", c_void_p),
        ("ffn_norm", c_void_p),
        ("eps", c_double),
        ("query_heads", c_int64),
        ("kv_heads", c_int64),
        ("head_width", c_int64),
        ("qkv", Weights),
        ("o", Weights),
        ("gate_up", Weights),
        ("down", Weights),
    ]


class Pass(Structure):
    """Positions in flight: their angles, and the strides of the cache."""

    _fields_ = [
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("angle_row", c_int64),
        ("angle_position", c_int64),
        ("rows", c_int64),
        ("positions", c_int64),
        ("cache_row", c_int64),
        ("cache_head", c_int64),
    ]


class Keys(Structure):
    """One layer's cache, and where in it each row's new keys go."""

    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("starts", c_void_p),
        ("starts_stride", c_int64),
        ("longest", c_int64),
    ]
