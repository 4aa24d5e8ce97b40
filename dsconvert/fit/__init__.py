"""The fit: factors and statistics of a rewritten model, from activations, without data.

``stream`` runs teacher and student side by side; ``moments`` gathers what least squares needs;
``least_squares`` and ``blueprint`` fit the two orders; ``statistics`` follows with the batch
normalisations; ``run`` puts them together; ``original`` does it for a whole model.
"""

from __future__ import annotations

from dsconvert.fit.original import fit_to_original
from dsconvert.fit.run import BATCH, DEFAULT_LATENTS, Outcome, Progress, run

__all__ = ["BATCH", "DEFAULT_LATENTS", "Outcome", "Progress", "fit_to_original", "run"]
