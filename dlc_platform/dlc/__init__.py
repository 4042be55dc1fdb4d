"""DeepLabCut: projects, labels, datasets, training, evaluation and inference.

The only code that imports deeplabcut and torch, inside functions, because that takes half a minute.
"""

import os

# Torch's threads wait for each other by spinning. If other processes use the cores too, they spin most of the time:
# measured on two busy cores, ten times slower than threads that sleep. It must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
