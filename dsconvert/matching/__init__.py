"""Train a student to match its teacher on random latents: loss, judge, optimiser, loop; no files.

``loss`` compares the two (``outputs`` runs them, ``blocks`` records their maps, ``readout``
predicts a map that has other channels), ``batches`` numbers the latents, ``evaluator`` measures on
held-out ones, ``best`` keeps the best student, ``schedule`` sets rates and ends, ``loop`` trains,
``setup`` prepares all of it.
:mod:`dsconvert.distill` runs it on files, :mod:`dsconvert.core.polish` at the end of a conversion.
"""
