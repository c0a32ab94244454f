"""`hostile` lies one folder up, for whoever tests against it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
