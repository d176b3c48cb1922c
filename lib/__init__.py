"""Library behind the notebooks: sparse autoencoders on downstream tasks, re-run with error bars."""

import warnings

# Progress bars are for terminals; in a notebook their absence needs no warning.
warnings.filterwarnings("ignore", message="IProgress not found")
