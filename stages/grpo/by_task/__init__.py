"""Tasks of a mixture told apart: gauges and gradients of each."""
