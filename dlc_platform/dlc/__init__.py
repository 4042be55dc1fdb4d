"""DeepLabCut: projects, labels, datasets, training, evaluation and inference.

The only code that imports deeplabcut and torch, inside functions, because that takes half a minute.
"""

import os

# Torch's threads wait for each other by spinning. Where other processes want the cores too, they then spin most of the
# time: measured on two busy cores, ten times slower than threads that sleep. It must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
