"""The synthetic lab: rendered videos with ground truth, its DeepLabCut project, and the story told with them."""
