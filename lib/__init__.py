"""Library behind the notebooks: sparse autoencoders on downstream tasks, re-run with error bars.

Data flows, and imports point, from left to right: ``sources`` -> ``prompts``, ``corpora`` -> ``lm`` ->
``activations`` -> ``sae`` -> ``probes``, ``debugging``, ``autointerp`` -> ``study`` -> ``results``, ``claims`` ->
``figures`` -> ``report``. ``config`` (profiles) and ``artifacts`` (the store) stand beside them.
"""

import warnings

# Progress bars are for terminals; in a notebook their absence needs no warning.
warnings.filterwarnings("ignore", message="IProgress not found")
