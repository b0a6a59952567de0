"""Rankings, correlations and how they are shown. Computed from metric values; no token lists and no models."""
