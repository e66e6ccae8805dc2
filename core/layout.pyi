from typing import Final

RECORD_VERSION: Final[int]
PATH_MAX: Final[int]
ARGS_MAX: Final[int]
DATA_MAX: Final[int]
RECORD_MAX: Final[int]
TYPES: Final[dict[str, int]]
FLAGS: Final[dict[str, int]]
COUNTERS: Final[dict[str, int]]
STRUCTS: Final[dict[str, dict[str, tuple[str, int]]]]
SIZES: Final[dict[str, int]]
STRUCT_OF_TYPE: Final[dict[int, str]]
CALLS: Final[tuple[str, ...]]
