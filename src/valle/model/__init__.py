"""The two models of VALL-E over one transformer: ``ar`` writes codebook 1 frame by frame, ``nar`` adds the other seven.

Tensors in, tensors out: nothing here knows of files, devices or training loops.
"""
