"""Several configurations that train at once on one frozen base model."""
