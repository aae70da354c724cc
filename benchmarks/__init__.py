"""Benchmarks: the pipeline against the pattern of TensorFlow's ``retrain.py``, on this machine, side by side."""
