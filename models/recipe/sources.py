"""Which modules and classes the pocket reference covers."""

from __future__ import annotations

STANDARD_LIBRARY = """
builtins argparse array ast asyncio base64 bisect calendar cmath collections concurrent.futures
configparser contextlib copy csv dataclasses datetime decimal difflib dis enum fnmatch fractions
functools gc getpass glob gzip hashlib heapq hmac html importlib inspect io ipaddress itertools
json keyword linecache locale logging lzma math mimetypes operator os os.path pathlib pickle
platform pprint queue random re sched secrets shlex shutil signal socket statistics string struct
subprocess sys tempfile textwrap threading time timeit tokenize traceback types typing unicodedata
urllib.parse uuid warnings weakref zipfile zlib zoneinfo
""".split()  # noqa: SIM905

NUMERICAL = """
numpy numpy.linalg numpy.random numpy.fft mlx.core mlx.core.linalg mlx.core.random mlx.core.fft
mlx.core.fast mlx.nn mlx.nn.losses mlx.nn.init mlx.optimizers mlx.utils
""".split()  # noqa: SIM905

MODULES = STANDARD_LIBRARY + NUMERICAL

CLASSES_WITH_METHODS = """
builtins.str builtins.bytes builtins.list builtins.dict builtins.set builtins.int builtins.float
builtins.tuple collections.Counter collections.deque collections.OrderedDict
datetime.date datetime.datetime datetime.timedelta pathlib.Path threading.Event queue.Queue
fractions.Fraction mlx.core.array mlx.nn.Module numpy.ndarray
""".split()  # noqa: SIM905

# Longest first: the first that fits is the usual short form.
ALIASES = (
    ("mlx.core", "mx"),
    ("mlx.nn", "nn"),
    ("mlx.optimizers", "optim"),
    ("numpy", "np"),
)
