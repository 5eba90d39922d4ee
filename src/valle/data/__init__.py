"""From a corpus on disk to batches: manifest, packed codes and phonemes, length-bucketed sampling."""
