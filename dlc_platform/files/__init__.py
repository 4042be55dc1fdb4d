"""Files that other people made, read with care. What is in them means something elsewhere."""
