import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# One thread a process: two on a busy two-core machine are several times slower, and results stay the same everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
