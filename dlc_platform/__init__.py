"""A data platform for pose estimation with DeepLabCut.

Nothing is imported here, so that each layer can be used without paying for the others.
"""
