"""The Triton kernels behind the operations; imported only where one runs, since triton is not installed everywhere."""

import os

# Whether a product and a sum become one rounding. Triton 3.10 turns the default; tolerances and tables are of this one.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

# Lower temperatures are greedy: float32 cannot divide by them (it loses digits from 1e-38 on, and 1e-46 is 0 in it).
COLDEST = 1e-30
