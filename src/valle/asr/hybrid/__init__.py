"""The hybrid DNN-HMM recogniser, the paper's first step (§4.1, §5.1): speech to words, phonemes and their times.

Its parts in the order in which they are made: ``features`` (kaldi-native-fbank), ``units`` and ``lexicon`` (phonemes as
``valle.text`` writes them), ``gmm`` and ``tree`` (a monophone, then tied left biphones, from a flat start),
``network`` (a time-delay network on steps of 30 ms), ``lm`` and ``graph`` (n-grams and HCLG), ``recogniser`` and
``aligner`` (what a trained folder can do). ``train`` makes all of it, ``evaluate`` measures it. The extra is ``asr``.
"""
