"""DeepLabCut: the only package that imports deeplabcut and torch, and only inside functions."""
